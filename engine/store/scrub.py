"""Scrub: a store is read from end to end now and then, so that damage is found before somebody needs what it hides."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from engine.work.background import Background
from engine.work.context import EngineContext
from engine.work.stored import StoredPartition

FIRST_AFTER_S: Final = 60.0
BETWEEN_PASSES_S: Final = 6 * 3600.0
SLICE_S: Final = 0.001  # at once, in the event loop
SHARE: Final = 0.005  # of one core, for all partitions of the worker together


class Scrub:
    """Reads the store of a partition in small slices, past the cache; damage ends the task, as with any other read.

    RocksDB compares each block with its checksum when it reads it from the disk. What the operating system has in
    memory is not read from the disk.
    """

    def __init__(self, partition: StoredPartition, background: Background, context: EngineContext) -> None:
        self._partition = partition
        self._background = background
        self._context = context
        self._next: bytes | None = b""  # the key to go on at, None at the end
        self._handle: asyncio.TimerHandle | None = None

    def plan(self) -> None:
        """Begin, or go on, after a while."""
        self.cancel()
        self._handle = self._background.later(FIRST_AFTER_S, self._step)

    def cancel(self) -> None:
        """Stop reading."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _step(self) -> None:
        self._next = self._partition.scrub(self._next or b"", time.perf_counter() + SLICE_S)
        pause_s = SLICE_S / SHARE * max(1, len(self._context.numbers))
        if self._next is None:
            self._context.metrics.store_scrubs += 1
            pause_s = BETWEEN_PASSES_S
        self._handle = self._background.later(pause_s, self._step)
