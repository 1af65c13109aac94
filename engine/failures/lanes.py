"""Lanes: the records of one aggregate that wait for one agent, in their order, behind the first that failed.

A lane exists while its first record waits to be tried again, or is parked as a dead letter. Records of the aggregate
that come meanwhile get the next numbers of the lane; records of all other aggregates go on. Everything here is rows of
the unit of work, so a lane is as durable as what handlers do, and moves on in the same commit as the records' effects.
"""

from __future__ import annotations

import struct
from typing import Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from engine.declare.table import KeyCodec, Table
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record

Ended = Literal["retry", "dead_letter"]


class NotNow(Exception):
    """The record can neither be handled now nor wait in a lane: it stays where it is, and its topic stands still."""


class LaneKey(NamedTuple):
    """One aggregate (a record's key) as one agent sees it."""

    agent: str
    key: bytes


class Lane(msgspec.Struct, frozen=True, gc=False):
    """Numbers of the first record and behind the last one; every number in between is a record that waits.

    `due_ms` (epoch, production time) is when the first one is tried again; None while it is parked as the dead letter
    `parked`. `since_ms` is when the lane came into being.
    """

    topic: str
    first: int
    end: int
    due_ms: int | None
    parked: int | None
    since_ms: int

    def __len__(self) -> int:
        """How many records are in the lane, the first one included."""
        return self.end - self.first


class WaitingKey(NamedTuple):
    """The place of a record in its lane."""

    agent: str
    key: bytes
    number: int


class WaitingRecord(msgspec.Struct, frozen=True, gc=False):
    """A record as it came, kept until its turn; `letter` is the dead letter that is tried again with it."""

    offset: int
    timestamp_ms: int
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    retry_count: int = 0
    letter: int | None = None

    def record(self, key: bytes) -> Record:
        """The record as the handler saw it the first time."""
        headers = tuple([(name, value or b"") for name, value in self.headers])
        return Record(self.offset, self.timestamp_ms, key or None, self.value, headers)


def _encode_lane(key: LaneKey) -> bytes:
    agent = key.agent.encode()
    return struct.pack(">H", len(agent)) + agent + struct.pack(">I", len(key.key)) + key.key


def _decode_lane(raw: bytes) -> LaneKey:
    agent_end = 2 + struct.unpack(">H", raw[:2])[0]
    return LaneKey(raw[2:agent_end].decode(), raw[agent_end + 4 :])


def _encode_waiting(key: WaitingKey) -> bytes:
    return _encode_lane(LaneKey(key.agent, key.key)) + struct.pack(">Q", key.number)


def _decode_waiting(raw: bytes) -> WaitingKey:
    return WaitingKey(*_decode_lane(raw[:-8]), struct.unpack(">Q", raw[-8:])[0])


LANES: Table[LaneKey, Lane] = Table(
    "waiting-aggregates", Lane, KeyCodec(_encode_lane, _decode_lane), help="aggregates whose records wait, by agent"
)
WAITING: Table[WaitingKey, WaitingRecord] = Table(
    "waiting-records", WaitingRecord, KeyCodec(_encode_waiting, _decode_waiting), cached=False,
    help="records that wait for their turn behind one that failed, in their order",
)  # fmt: skip


def waiting_record(record: Record, retry_count: int = 0, letter: int | None = None) -> WaitingRecord:
    """A record as it is kept."""
    return WaitingRecord(
        record.offset, record.timestamp_ms, record.value, tuple(record.headers), retry_count, letter
    )  # fmt: skip


def append(work: UnitOfWork, key: LaneKey, topic: str, record: WaitingRecord, due_ms: int) -> None:
    """Let a record wait at the end of a lane; one that is the first of its lane is due at `due_ms`."""
    lane = work.get(LANES, key) or Lane(topic, 1, 1, due_ms, None, work.now_ms)
    work.put(WAITING, WaitingKey(*key, lane.end), record)
    work.put(LANES, key, replace(lane, end=lane.end + 1))


def try_later(work: UnitOfWork, key: LaneKey, topic: str, record: WaitingRecord, due_ms: int) -> None:
    """Let the record at the front of a lane, which may be about to begin with it, wait until `due_ms`."""
    lane = work.get(LANES, key)
    if lane is None:
        append(work, key, topic, record, due_ms)
        return
    work.put(WAITING, WaitingKey(*key, lane.first), record)
    work.put(LANES, key, replace(lane, due_ms=due_ms, parked=None))


def park(work: UnitOfWork, key: LaneKey, topic: str, letter: int) -> int:
    """Let a lane, which may be about to begin, stand behind a dead letter; returns the letter's number in the lane."""
    lane = work.get(LANES, key)
    if lane is None:
        lane = Lane(topic, 1, 2, None, letter, work.now_ms)
    else:
        work.delete(WAITING, WaitingKey(*key, lane.first))
    work.put(LANES, key, replace(lane, due_ms=None, parked=letter))
    return lane.first


def advance(work: UnitOfWork, key: LaneKey) -> None:
    """The first record of a lane is done with: the next one is due, and a lane without records ends."""
    lane = work.get(LANES, key)
    if lane is None:
        return
    work.delete(WAITING, WaitingKey(*key, lane.first))
    left = replace(lane, first=lane.first + 1, due_ms=work.now_ms, parked=None)
    work.put(LANES, key, left if len(left) else None)


def is_next(work: UnitOfWork, key: WaitingKey) -> bool:
    """Whether it is this record's turn, as of the open unit of work."""
    lane = work.get(LANES, LaneKey(key.agent, key.key))
    return lane is not None and lane.first == key.number and lane.due_ms is not None and lane.due_ms <= work.now_ms
