"""The rebuilds of one partition: begun, cancelled and looked at from outside, carried out one after the other."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

from engine.declare.agent import Projection
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.classify import INFRASTRUCTURE_ERRORS, InfrastructureError, text_of
from engine.failures.lane_loop import LaneLoop
from engine.log.ports import TransportError
from engine.positions.losses import Losses
from engine.rebuilds.rows import CANCELLED, DONE, REBUILDS, RUNNING, Rebuild, ended
from engine.rebuilds.run import RebuildRun
from engine.work.context import EngineContext
from engine.work.open_work import OpenWork

log = logging.getLogger(__name__)


class RebuildUnderWay(Exception):
    """The projection is being rebuilt already, by `rebuild`."""

    def __init__(self, rebuild: Rebuild) -> None:
        super().__init__(f"rebuild {rebuild.id} is under way")
        self.rebuild = rebuild


class Progress(NamedTuple):
    """How far a rebuild is: offsets of the source, at a speed (per second) that is 0 while it is not known."""

    rebuild: Rebuild
    done: int
    total: int
    per_second: float
    phase: str


class RebuildLoop:
    """Rebuilds of one life of a partition; `load` reads what earlier lives have left."""

    def __init__(self, work: OpenWork, lanes: LaneLoop, losses: Losses, context: EngineContext) -> None:
        self._work = work
        self._lanes = lanes
        self._losses = losses
        self._context = context
        self._rebuilds: dict[str, Rebuild] = {}  # by agent, as committed
        self._run: RebuildRun | None = None
        self._runner: asyncio.Task[None] | None = None
        self._ended: set[asyncio.Task[None]] = set()  # runners that were cancelled, until they have let go
        self._next_commit = asyncio.Event()

    # ---- life

    def load(self) -> None:
        """Take note of the rebuilds in the store."""
        self._rebuilds = dict(self._work.partition.scan(REBUILDS))

    def plan(self) -> None:
        """Go on with what is to be done, if records flow."""
        if self._runner is None and self._work.life.is_running() and self._next() is not None:
            self._runner = self._work.life.background.run(self._work_off(), "rebuilds")

    def cancel(self) -> None:
        """Stop; what is committed is gone on with in the next epoch."""
        runner, self._runner, self._run = self._runner, None, None
        if runner is not None and runner is not asyncio.current_task():
            runner.cancel()
            self._ended.add(runner)
            runner.add_done_callback(self._ended.discard)
        self._wake()

    async def close(self) -> None:
        """Return when nothing runs any more."""
        if self._ended:
            await asyncio.wait(self._ended)

    def committed(self, work: UnitOfWork) -> None:
        """This unit of work was just committed."""
        if self._run is not None:
            self._run.committed(work)
        for agent, rebuild in work.rows.get(REBUILDS, {}).items():
            self._rebuilds[agent] = rebuild
        self.plan()
        self._wake()

    def _wake(self) -> None:
        self._next_commit.set()
        self._next_commit = asyncio.Event()

    # ---- carrying out

    def _next(self) -> Projection | None:
        """A projection that is to be rebuilt; one that is no longer there is left alone."""
        for agent, rebuild in self._rebuilds.items():
            if rebuild.is_active and agent in self._context.projections:
                return self._context.projections[agent]
        return None

    async def _work_off(self) -> None:
        while (projection := self._next()) is not None:
            run = self._run = RebuildRun(self._work, self._lanes, self._losses, self._context, projection)
            try:
                await run.run()
                await self._until(lambda agent=projection.name: not self._rebuilds[agent].is_active)  # type: ignore[misc]
            except TransportError as error:
                log.warning("rebuild of %s stops for a moment: %s", projection.name, error)
                await asyncio.sleep(self._context.settings.restart_backoff)
            except INFRASTRUCTURE_ERRORS as error:
                self._work.life.fail(error)
                return
            except Exception as error:
                log.exception("rebuild of %s failed", projection.name)
                run.fail(f"{type(error).__name__}: {text_of(error)}")
                await asyncio.sleep(self._context.settings.restart_backoff)
        self._runner = self._run = None

    # ---- what people ask for

    async def begin(self, projection: Projection, id: str, check: bool, now_ms: int) -> Rebuild:
        """Begin a rebuild, once; returns when that is committed.

        Raises RebuildUnderWay for another one of the same projection, InfrastructureError when the partition goes away.
        """
        self._check_running()
        before = self._work.current.get(REBUILDS, projection.name)
        if before is not None and before.is_active and before.id != id:
            raise RebuildUnderWay(before)
        if before is None or before.id != id:
            self._put(projection, Rebuild(id, now_ms, check))
        await self._until(lambda: self._is(projection.name, id))
        return self._rebuilds[projection.name]

    async def stop(self, projection: Projection, now_ms: int) -> Rebuild | None:
        """Cancel a rebuild unless its outcome is decided; the rebuild as it is then, committed."""
        self._check_running()
        rebuild = self._work.current.get(REBUILDS, projection.name)
        if rebuild is not None and rebuild.outcome == RUNNING:
            self._put(projection, ended(rebuild, CANCELLED, now_ms))
            await self._until(lambda: self._rebuilds[projection.name].outcome != RUNNING)
        return self._rebuilds.get(projection.name)

    def all_progress(self) -> Iterator[tuple[str, Progress]]:
        """How far the last rebuild of each projection is that ever was rebuilt, by agent."""
        for agent, projection in self._context.projections.items():
            if (progress := self.progress(projection)) is not None:
                yield agent, progress

    def progress(self, projection: Projection) -> Progress | None:
        """How far the last rebuild is, as committed; None when there was none."""
        rebuild = self._rebuilds.get(projection.name)
        if rebuild is None:
            return None
        if rebuild.outcome == DONE:
            return Progress(rebuild, rebuild.next, rebuild.next, 0.0, DONE)
        total = max(rebuild.next, self._work.partition.reached(projection.name, projection.topic.name))
        run = self._run
        if run is None or run.projection is not projection or not rebuild.is_active:
            return Progress(rebuild, rebuild.next, total, 0.0, "waiting" if rebuild.is_active else rebuild.state)
        seconds = time.monotonic() - run.began_at
        return Progress(rebuild, rebuild.next, total, run.handled / seconds if seconds > 0 else 0.0, run.phase)

    def _is(self, agent: str, id: str) -> bool:
        rebuild = self._rebuilds.get(agent)
        return rebuild is not None and rebuild.id == id

    def _put(self, projection: Projection, rebuild: Rebuild) -> None:
        work = self._work.open()
        work.put(REBUILDS, projection.name, rebuild)
        work.release()
        self._work.commit_soon()

    def _check_running(self) -> None:
        if not self._work.life.is_running():
            raise InfrastructureError(f"partition {self._work.partition.number} is moving; try again")

    async def _until(self, holds: Callable[[], bool]) -> None:
        """Wait until a commit has made something true; raises InfrastructureError when there is none to come."""
        while not holds():
            self._check_running()
            await self._next_commit.wait()
