"""Timers: rows sorted by due time, kept with the partition's state, handled like records and exactly once."""

import struct
from typing import NamedTuple

import msgspec

from engine.declare.table import KeyCodec, Table

_TOPIC_PREFIX = "timer "  # no topic has a space


class TimerKey(NamedTuple):
    """Due time first (milliseconds since the epoch, production time), so that rows lie in the order they fall due."""

    due_ms: int
    kind: str
    key: str


class Timer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One timer: `kind` names the handler, `key` the aggregate, `payload` is the handler's own.

    One that failed and is tried again (`retry_count` times so far) still says when it was due at first; `letter` is the
    dead letter that is tried again with it. `headers` are as a record's: the trace that it goes on with.
    """

    kind: str
    key: str
    due_ms: int
    payload: bytes = b""
    retry_count: int = 0
    letter: int | None = None
    headers: tuple[tuple[str, bytes], ...] = ()


def encode_due(due_ms: int) -> bytes:
    """The start of all timer keys due at `due_ms`."""
    return struct.pack(">Q", due_ms)


def _encode(key: TimerKey) -> bytes:
    kind = key.kind.encode()
    return encode_due(key.due_ms) + bytes([len(kind)]) + kind + key.key.encode()


def _decode(raw: bytes) -> TimerKey:
    kind_end = 9 + raw[8]
    return TimerKey(struct.unpack(">Q", raw[:8])[0], raw[9:kind_end].decode(), raw[kind_end:].decode())


def timer_topic(kind: str) -> str:
    """What stands for a topic in dead letters of timers."""
    return f"{_TOPIC_PREFIX}{kind}"


def kind_of_topic(topic: str) -> str | None:
    """The kind of timer that `timer_topic` made this of, None for a topic that is one."""
    return topic.removeprefix(_TOPIC_PREFIX) if topic.startswith(_TOPIC_PREFIX) else None


TIMERS: Table[TimerKey, Timer] = Table("timers", Timer, KeyCodec(_encode, _decode), help="what falls due, by due time")
