"""Expiry: rows that are kept for a time only, such as deduplication marks, are swept out when it is over."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, NamedTuple

from engine.declare.table import AnyTable
from engine.work.context import EngineContext
from engine.work.open_work import OpenWork

SWEEP_INTERVAL_S = 600.0
ROWS_PER_STEP = 500
STEP_PAUSE_S = 0.01


class _Marks(NamedTuple):
    """A table of marks, when a row of it was set, and for how long it is kept."""

    table: AnyTable
    marked_at_ms: Callable[[Any], int]
    kept_ms: float


class Expiry:
    """Walks through tables of marks now and then, in small steps; deletions are committed like everything else."""

    def __init__(self, work: OpenWork, context: EngineContext) -> None:
        self._work = work
        window_s = context.settings.dedupe_window
        self._marks = [
            _Marks(table, of, (table.kept_s or window_s) * 1000)
            for table in context.tables.values()
            if (of := table.marked_at_ms) is not None
        ]
        self._handle: asyncio.TimerHandle | None = None

    def plan(self) -> None:
        """Begin the next sweep after a while."""
        self.cancel()
        if self._marks:
            interval_s = min(SWEEP_INTERVAL_S, *(marks.kept_ms / 1000 for marks in self._marks))
            self._handle = self._work.life.background.later(interval_s, self._begin)

    def cancel(self) -> None:
        """Stop sweeping."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _begin(self) -> None:
        self._step(self._steps(), time.time() * 1000)

    def _steps(self) -> Iterator[tuple[_Marks, list[tuple[Any, Any]]]]:
        """All marks in short lists; each is read afresh, because a live iterator pins the store."""
        for marks in self._marks:
            start = b""
            while rows := list(islice(self._work.partition.scan(marks.table, start=start), ROWS_PER_STEP)):
                yield marks, rows
                start = marks.table.key.encode(rows[-1][0]) + b"\0"

    def _step(self, steps: Iterator[tuple[_Marks, list[tuple[Any, Any]]]], now_ms: float) -> None:
        self._handle = None
        step = next(steps, None)
        if step is None:
            self.plan()
            return
        marks, rows = step
        oldest_ms = now_ms - marks.kept_ms
        expired = [key for key, row in rows if marks.marked_at_ms(row) < oldest_ms]
        for key in expired:
            self._remove(marks, key, oldest_ms)
        if expired:
            self._work.commit_soon()
        self._handle = self._work.life.background.later(STEP_PAUSE_S, self._step, steps, now_ms)

    def _remove(self, marks: _Marks, key: Any, oldest_ms: float) -> None:
        """Delete a mark, unless it was set anew by what is not committed yet."""
        work = self._work.open()
        row = work.get(marks.table, key)
        if row is not None and marks.marked_at_ms(row) < oldest_ms:
            work.delete(marks.table, key)
            work.release()
