"""What the running projection did not simply handle: records that wait, and dead letters with what became of them."""

from __future__ import annotations

import asyncio
from itertools import islice
from typing import Final, NamedTuple

from engine.declare.partition import Partition
from engine.declare.table import AnyTable, Table
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.dead_letters import CLOSED_DEAD_LETTERS, DEAD_LETTERS, DISCARDED, DeadLetter
from engine.failures.lane_offsets import WaitingOffsets
from engine.failures.lanes import LANES, WAITING
from engine.log.ports import Record
from engine.rebuilds.rows import plus, sum_of

LETTERS_PER_SLICE = 200
_LETTERS: Final[tuple[Table[int, DeadLetter], ...]] = (DEAD_LETTERS, CLOSED_DEAD_LETTERS)
_UNSETTLING: Final[tuple[AnyTable, ...]] = (LANES, WAITING, *_LETTERS)


class _Closed(NamedTuple):
    number: int
    is_discarded: bool


class UnsettledRecords:
    """Of one agent in its topic, by offset, as of the last commit; `load` once, then `committed` after each commit.

    A record is unsettled while it waits or is an open dead letter. What is settled stays so.
    """

    def __init__(self, partition: Partition, waiting: WaitingOffsets, source: tuple[str, str]) -> None:
        self._partition = partition
        self._waiting = waiting
        self._agent, self._topic = source
        self._open: dict[int, int] = {}  # by number of the letter
        self._open_offsets: set[int] = set()
        self._closed: dict[int, _Closed] = {}  # by offset
        self._first_due: int | None = None
        self._is_stale = True

    async def load(self) -> None:
        """Take note of all letters in the store; gives the loop back in between."""
        for table in _LETTERS:
            start = b""
            while rows := list(islice(self._partition.scan(table, start=start), LETTERS_PER_SLICE)):
                for number, letter in rows:
                    self._note(table, number, letter)
                start = table.key.encode(rows[-1][0]) + b"\0"
                await asyncio.sleep(0)

    def committed(self, work: UnitOfWork) -> None:
        """Take note of what the unit of work that was just committed has changed."""
        for table in _LETTERS:
            for number, letter in work.rows.get(table, {}).items():
                self._note(table, number, letter)
        self._is_stale = self._is_stale or touches_lanes(work)

    def _note(self, table: Table[int, DeadLetter], number: int, letter: DeadLetter | None) -> None:
        if table is DEAD_LETTERS and number in self._open:
            self._open_offsets.discard(self._open.pop(number))
        if letter is None or (letter.agent, letter.topic) != (self._agent, self._topic):
            return
        if table is DEAD_LETTERS:
            self._open[number] = letter.offset
            self._open_offsets.add(letter.offset)
        else:
            self._closed[letter.offset] = _Closed(number, letter.state == DISCARDED)

    def __contains__(self, offset: int) -> bool:
        """Whether the record at this offset is unsettled."""
        return offset in self._open_offsets or offset in self._waiting.of(self._agent)

    def is_discarded(self, offset: int) -> bool:
        """Whether somebody gave the record up."""
        closed = self._closed.get(offset)
        return closed is not None and closed.is_discarded

    def as_handled(self, record: Record) -> Record:
        """The record as it was handled in the end: a dead letter may have been edited before."""
        closed = self._closed.get(record.offset)
        letter = self._partition.read(CLOSED_DEAD_LETTERS, closed.number) if closed is not None else None
        if letter is None or not letter.complete:
            return record
        headers = tuple([(name, value or b"") for name, value in letter.headers])
        return Record(record.offset, record.timestamp_ms, letter.key, letter.value, headers)

    def first_due(self) -> int | None:
        """The lowest offset that will be tried again by itself, None when nothing will."""
        if self._is_stale:
            self._first_due = min(self._waiting.due(self._agent), default=None)
            self._is_stale = False
        return self._first_due

    def sum(self) -> int:
        """Which offsets are unsettled, as one number."""
        total = 0
        for offset in self._open_offsets | self._waiting.of(self._agent):
            total = plus(total, sum_of(offset))
        return total


def touches_lanes(work: UnitOfWork) -> bool:
    """Whether what is settled changes with this unit of work."""
    return any(work.rows.get(table) for table in _UNSETTLING)
