"""Long reads: work that reads a partition's store at its own pace, and ends before the store is closed."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from engine.failures.classify import InfrastructureError


class LongReads:
    """The long reads of one life of a partition; records that stop flowing end them."""

    def __init__(self) -> None:
        self._running: set[asyncio.Task[None]] = set()

    def begin(self, read: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Let a read run beside everything else."""
        task = asyncio.get_running_loop().create_task(read, name=name)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return task

    async def run(self, read: Coroutine[Any, Any, None], name: str) -> None:
        """Let a read run and wait for it; raises InfrastructureError when the partition goes away meanwhile."""
        task = self.begin(read, name)
        try:
            await task
        except asyncio.CancelledError:
            waiting = asyncio.current_task()
            if waiting is None or waiting.cancelling():
                raise
            raise InfrastructureError("the partition is moving to another worker; try again") from None

    def cancel(self) -> None:
        """End them all."""
        for task in self._running:
            task.cancel()

    async def close(self) -> None:
        """Return when none runs any more."""
        self.cancel()
        if self._running:
            await asyncio.wait(self._running)
