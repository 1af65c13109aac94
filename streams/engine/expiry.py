"""Expiry: rows whose time is over are swept out of tables that say when a row expires."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from itertools import islice
from typing import TYPE_CHECKING, Any

from streams.engine.context import EngineContext
from streams.engine.table import AnyTable

if TYPE_CHECKING:
    from streams.engine.partition_task import PartitionTask

SWEEP_INTERVAL_S = 600.0
ROWS_PER_STEP = 500
STEP_PAUSE_S = 0.01


class Expiry:
    """Walks through expiring tables now and then, in small steps; deletions are committed like everything else."""

    def __init__(self, task: PartitionTask, context: EngineContext) -> None:
        self._task = task
        self._tables = [table for table in context.tables.values() if table.expires_at_ms is not None]
        self._handle: asyncio.TimerHandle | None = None

    def plan(self) -> None:
        """Begin the next sweep after a while."""
        self.cancel()
        if self._tables:
            self._handle = asyncio.get_running_loop().call_later(SWEEP_INTERVAL_S, self.sweep)

    def cancel(self) -> None:
        """Stop sweeping."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def sweep(self) -> None:
        """Remove every row that has expired by now."""
        self._step(self._expiring_rows(), int(time.time() * 1000))

    def _expiring_rows(self) -> Iterator[list[tuple[AnyTable, Any, Any]]]:
        """All rows of expiring tables in short lists; each is read afresh, because a live iterator pins the store."""
        for table in self._tables:
            start = b""
            while rows := list(islice(self._task.scan(table, start=start), ROWS_PER_STEP)):
                yield [(table, key, row) for key, row in rows]
                start = table.key.encode(rows[-1][0]) + b"\0"

    def _step(self, rows: Iterator[list[tuple[AnyTable, Any, Any]]], now_ms: int) -> None:
        self._handle = None
        step = next(rows, None)
        if step is None:
            self.plan()
            return
        work = self._task.open_work()
        expired = [(table, key) for table, key, row in step if table.expires_at_ms(row) < now_ms]  # type: ignore[misc]
        for table, key in expired:
            row = work.get(table, key)
            if row is not None and table.expires_at_ms(row) < now_ms:  # type: ignore[misc]
                work.delete(table, key)
                work.release()
        if expired:
            self._task.commit_soon()
        self._handle = asyncio.get_running_loop().call_later(STEP_PAUSE_S, self._step, rows, now_ms)
