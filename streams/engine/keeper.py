"""The keeper of a partition: one partition task after another, until the partition is taken away."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from streams.engine.about import about
from streams.engine.changelogs import ChangelogRefused
from streams.engine.partition_task import PartitionTask
from streams.transport.base import ProducerFenced

if TYPE_CHECKING:
    from streams.engine.engine import Engine

log = logging.getLogger(__name__)

REFUSED_PAUSE_S = 30.0  # a person has to do something, and to look again may mean to read a whole changelog


class PartitionKeeper:
    """Starts a task, waits for its end, and starts the next one after a pause.

    It is told to stop rather than cancelled, so that a store is never left half closed.
    """

    def __init__(self, number: int, engine: Engine) -> None:
        self._number = number
        self._engine = engine
        self._stopped = asyncio.Event()
        self._life = asyncio.create_task(self._live(), name=f"partition {number}")

    async def stop(self) -> None:
        """End the task that lives now; returns when producer and store are closed."""
        self._stopped.set()
        await asyncio.wait([self._life])

    async def _live(self) -> None:
        settings, said = self._engine.settings, about(partition=self._number)
        pause_s = settings.restart_backoff
        while not self._stopped.is_set():
            task = self._engine.new_task(self._number)
            try:
                started, error = await self._live_once(task)
            finally:
                await task.close()
                self._engine.forget(task)
            if error is None:
                return
            self._engine.metrics.partition_failures += 1
            if isinstance(error, ProducerFenced) and self._engine.request_rejoin():
                # Starting again at once would fence the new owner, which would fence us, and so on for ever.
                log.warning(
                    "partition %d was fenced: another worker owns it; joining the group anew", self._number, extra=said
                )
                return
            pause_s = settings.restart_backoff if started else min(pause_s * 2, settings.restart_backoff_max)
            if isinstance(error, ChangelogRefused):
                pause_s = REFUSED_PAUSE_S
            log.error("partition %d starts again in %.1f s: %s", self._number, pause_s, _describe(error), extra=said)
            await self._sleep(pause_s)

    async def _live_once(self, task: PartitionTask) -> tuple[bool, BaseException | None]:
        """Whether the task had started when it ended, and the error that ended it; None when told to stop."""
        starting = asyncio.create_task(task.start(), name=f"start of partition {self._number}")
        if not await self._unless_stopped(starting):
            starting.cancel()
            await asyncio.wait([starting])
            return False, None
        if (error := starting.exception()) is not None:
            return False, error
        log.info(
            "partition %d is restored (%d records)",
            self._number,
            task.progress.applied,
            extra=about(partition=self._number),
        )
        self._engine.resume(task)
        if not await self._unless_stopped(task.failed):
            return True, None
        return True, task.failed.result()

    async def _unless_stopped(self, future: asyncio.Future[None] | asyncio.Future[BaseException]) -> bool:
        """Wait for `future`; False when the keeper was told to stop first."""
        stopped = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait((future, stopped), return_when=asyncio.FIRST_COMPLETED)
        finally:
            stopped.cancel()
        return future.done() and not self._stopped.is_set()

    async def _sleep(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopped.wait()
        except TimeoutError:
            return


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
