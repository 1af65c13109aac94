"""Pace: long work in short slices of the event loop, shorter ones and with pauses while records come in."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from engine.inspection import Engine

SLICE_S: Final = 0.005
BUSY_PAUSE_S: Final = 0.02  # a fifth of the time at most while the worker has other work


class Pace:
    """One long piece of work: `if pace.is_over(): await pace.turn()` after each step."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._began = self._deadline = 0.0

    def is_over(self) -> bool:
        """Whether the slice is used up."""
        return time.perf_counter() >= self._deadline

    async def turn(self) -> None:
        """Let others go on; the next slice begins."""
        share = self._engine.loop_share
        if self._began:
            share.used(time.perf_counter() - self._began)
        await asyncio.sleep(BUSY_PAUSE_S if self._engine.is_busy() else 0)
        self._began = time.perf_counter()
        self._deadline = self._began + min(SLICE_S, share.next_s())
