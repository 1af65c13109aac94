"""The keeper of a partition: one partition task after another, until the partition is taken away."""

from __future__ import annotations

import asyncio
import logging

from engine.log.ports import ProducerFenced
from engine.observe.about import about
from engine.partition.live_engine import LiveEngine
from engine.partition.task import PartitionTask
from engine.store.changelogs import ChangelogRefused
from engine.store.faults import disk_fault_key, report_failure
from engine.store.repair_rows import RepairAsked
from engine.work.background import Background, error_of, must_pass, outcome

log = logging.getLogger(__name__)

REFUSED_PAUSE_S = 30.0  # a person has to do something, and to look again may mean to read a whole changelog
REJOIN_S = 60.0  # so long after joining the group anew the partition is still ours: nothing has come of it


class PartitionKeeper:
    """Starts a task, waits for its end, and starts the next one after a pause.

    It is told to stop rather than cancelled, so that a store is never left half closed. Nothing that a task raises ends
    it, at the task's start, end or in between; should it end all the same, so does the worker.
    """

    def __init__(self, number: int, engine: LiveEngine) -> None:
        self._number = number
        self._engine = engine
        self._stopped = asyncio.Event()
        self._awake = asyncio.Event()  # no pause before the next life
        self._pause_s = engine.settings.restart_backoff
        self._life = Background(self._give_up).run(self._live(), f"partition {number}")

    async def stop(self) -> None:
        """End the task that lives now; returns when producer and store are closed."""
        self._stopped.set()
        self._awake.set()
        await asyncio.wait([self._life])

    def start_again(self, reason: Exception) -> None:
        """End the task that lives now, if it has started, and start the next one at once."""
        self._awake.set()
        task = self._engine.tasks.get(self._number)
        if task is not None and task.life.is_restored():
            task.life.fail(reason)

    def _give_up(self, error: BaseException) -> None:
        log.error("the keeper of partition %d failed", self._number, exc_info=error)
        self._engine.die(f"partition {self._number} cannot be kept ({_describe(error)}): start the worker again")

    async def _live(self) -> None:
        while not self._stopped.is_set():
            pause_s = await self._one_life()
            await self._sleep(pause_s)

    async def _one_life(self) -> float:
        """Start a task and wait for its end; how long to wait before the next one, in seconds."""
        try:
            task = self._engine.new_task(self._number)
        except Exception as failure:
            return self._pause_after(False, failure)
        started, error = False, None
        try:
            started, error = await self._until_its_end(task)
        except BaseException as failure:
            if must_pass(failure):
                raise
            error = failure
        at_the_end = await outcome(task.close(), f"end of partition {self._number}")
        if at_the_end is not None:
            said = about(partition=self._number)
            log.error("partition %d was not closed in order: %s", self._number, _describe(at_the_end), extra=said)
        self._engine.forget(task)
        return self._pause_after(started, error) if error is not None else 0.0

    async def _until_its_end(self, task: PartitionTask) -> tuple[bool, BaseException | None]:
        """Whether a task had started when it ended, and the error that ended it; None when told to stop."""
        starting = asyncio.create_task(task.start(), name=f"start of partition {self._number}")
        if not await self._unless_stopped(starting):
            starting.cancel()
            await asyncio.wait([starting])
            error_of(starting)
            return False, None
        if (error := error_of(starting)) is not None:
            return False, error
        self._engine.faults.clear(disk_fault_key(self._number))
        applied, said = task.progress.applied, about(partition=self._number)
        log.info("partition %d is restored (%d records)", self._number, applied, extra=said)
        if self._engine.repairs.due(self._number) is not None:
            return True, RepairAsked("a repair was asked for while it started")
        self._engine.resume(task)
        if not await self._unless_stopped(task.life.failed):
            return True, None
        return True, task.life.failed.result()

    def _pause_after(self, started: bool, error: BaseException) -> float:
        """Take note of the error that ended a task; how long to wait before the next one, in seconds."""
        try:
            return self._note_failure(started, error)
        except Exception:
            log.exception("partition %d starts again", self._number)
            return self._engine.settings.restart_backoff_max

    def _note_failure(self, started: bool, error: BaseException) -> float:
        settings, said = self._engine.settings, about(partition=self._number)
        if isinstance(error, RepairAsked):
            log.info("partition %d starts again: %s", self._number, error, extra=said)
            return 0.0
        self._engine.metrics.partition_failures += 1
        report_failure(self._engine.faults, self._number, error)
        if isinstance(error, ProducerFenced) and self._engine.request_rejoin():
            # Starting again at once would fence the new owner, which would fence us, and so on for ever.
            log.warning(
                "partition %d was fenced: another worker owns it; joining the group anew", self._number, extra=said
            )
            return REJOIN_S
        self._pause_s = settings.restart_backoff if started else min(self._pause_s * 2, settings.restart_backoff_max)
        if isinstance(error, ChangelogRefused):
            self._pause_s = REFUSED_PAUSE_S
        log.error("partition %d starts again in %.1f s: %s", self._number, self._pause_s, _describe(error), extra=said)
        return self._pause_s

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
                await self._awake.wait()
        except TimeoutError:
            return
        self._awake.clear()


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
