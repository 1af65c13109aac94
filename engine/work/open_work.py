"""Open work: the open unit of work of a partition, the positions it has reached, and when it is committed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial

from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import TransactionalProducer, TransportError
from engine.positions.positions import POSITIONS, AgentPosition, position_key
from engine.work.background import error_of
from engine.work.backlog import Backlog
from engine.work.commit import commit
from engine.work.context import EngineContext
from engine.work.life import Life, TaskState
from engine.work.stored import StoredPartition
from engine.work.waiters import PositionWaiters

COMMIT_TIMEOUT_S = 20.0

Source = tuple[str, str]  # agent and topic


class OpenWork:
    """What one life of a partition has handled and not committed; one commit runs at a time, the next fills meanwhile.

    `on_commit` is called with each unit of work that was committed, before anything else runs.
    """

    def __init__(
        self,
        partition: StoredPartition,
        life: Life,
        backlog: Backlog,
        waiters: PositionWaiters,
        producer: TransactionalProducer,
        context: EngineContext,
        on_commit: Callable[[UnitOfWork], None],
    ) -> None:
        self.partition = partition
        self.life = life
        self.positions: dict[Source, int] = {}  # what the open unit of work has reached
        self.topic_ids: dict[Source, str] = {}  # of the topics that the positions count
        self._stored: dict[Source, int] = {}  # what the positions' rows say
        self._backlog = backlog
        self.waiters = waiters
        self._producer = producer
        self._context = context
        self._on_commit = on_commit
        self._work: UnitOfWork | None = None
        self._opened_at = 0.0  # when the open unit of work got its first record, monotonic; 0 while it has none
        self._is_dry = False  # the transport has nothing more right now
        self._commit: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._holders = 0  # of the moment between two commits
        self._room = asyncio.Event()

    # ---- the unit of work

    @property
    def current(self) -> UnitOfWork:
        """The open unit of work, to read from."""
        assert self._work is not None
        return self._work

    def open(self) -> UnitOfWork:
        """The open unit of work, whose interval begins with its first change."""
        assert self._work is not None
        self._opened_at = self._opened_at or time.monotonic()
        return self._work

    def in_flight(self) -> list[UnitOfWork]:
        """What is not committed yet: the unit of work that is being committed, if one is, and the open one."""
        return [work for work in (self.partition.rows.committing, self._work) if work is not None]

    def new(self) -> UnitOfWork:
        """An empty unit of work on the partition's rows."""
        context = self._context
        return context.tracing.unit_of_work(
            self.partition.number,
            self.partition.rows,
            context.partition_for,
            context.encode,
            context.settings,
            context.reactions,
        )

    def is_empty(self) -> bool:
        """Whether there is nothing to commit."""
        return self.positions == self.partition.committed and (self._work is None or self._work.is_empty())

    @property
    def records_max(self) -> int:
        """With so many records a unit of work is full."""
        return self._context.loop_share.records_max(self._context.settings.commit_records_max)

    async def wait_for_room(self) -> None:
        """Hold back while the open unit of work is full and the one before is still being committed."""
        while self.life.state is not TaskState.CLOSED and self.open().records >= self.records_max:
            self._room.clear()
            self.commit_if_due()
            await self._room.wait()

    # ---- positions

    async def start(self, positions: dict[Source, int], found: UnitOfWork) -> None:
        """Go on from stored positions, once what the start has `found` out is committed.

        Only what is written down is missed when it is removed.
        """
        self.positions = positions
        self.partition.committed, self._stored = dict(positions), dict(positions)
        if not found.is_empty():
            context, rows = self._context, self.partition.rows
            rows.committing = found
            offsets = self._group_offsets(positions)
            await commit(found, offsets, self._producer, rows.store, context.settings.app_id, lambda step: None)
            rows.committed()
        self._work = self.new()

    def resume(self) -> None:
        """Go on from what is committed."""
        self.positions = dict(self.partition.committed)

    def move(self, source: Source, offset: int) -> None:
        """Let an agent of a suspended partition go on elsewhere; its row is up to the caller."""
        self.positions[source] = self.partition.committed[source] = self._stored[source] = offset

    def pass_markers(self, source: Source, offset: int) -> None:
        """Move an agent past transaction markers, unless it has something to commit; that needs no commit."""
        committed = self.partition.committed
        if self.positions.get(source, 0) == committed.get(source, 0) < offset:
            self.positions[source] = committed[source] = offset

    def keep_positions(self) -> None:
        """Let the next commit write positions that have moved past transaction markers alone.

        Without that a marker may be removed before it is known to be passed, and look like a lost record.
        """
        work, committed = self.open(), self.partition.committed
        for source, offset in self.positions.items():
            if self._stored.get(source) != offset == committed.get(source):
                self._put_position(work, source, offset)

    def _put_position(self, work: UnitOfWork, source: Source, offset: int) -> None:
        work.put(POSITIONS, position_key(*source), AgentPosition(*source, offset, self.topic_ids.get(source, "")))

    def _group_offsets(self, reached: Mapping[Source, int]) -> dict[tuple[str, int], int]:
        """What the group may forget: for each topic the minimum over its agents."""
        offsets = {}
        for topic in {topic for _, topic in reached}:
            agents = self._context.agents_of(topic)
            if agents:
                offsets[topic, self.partition.number] = min(reached.get((agent, topic), 0) for agent in agents)
        return offsets

    # ---- when it is committed

    @property
    def is_committing(self) -> bool:
        """Whether a commit is under way."""
        return self._commit is not None

    def commit_if_due(self) -> None:
        """Commit when the input has run dry, the interval is over, or the unit of work is full."""
        is_possible = self._commit is None and not self._holders and self.life.state is TaskState.RUNNING
        if not is_possible or self.is_empty():
            return
        settings, now = self._context.settings, time.monotonic()
        work = self.open()
        due_at = self._opened_at + settings.commit_interval
        is_dry = self._is_dry and self._backlog.is_through()
        if is_dry or now >= due_at or work.records >= self.records_max:
            self._start_commit()
        elif self._timer is None:
            self._timer = self.life.background.later(due_at - now, self._on_interval)

    def _on_interval(self) -> None:
        self._timer = None
        self.commit_if_due()

    def flows(self) -> None:
        """Records have come."""
        self._is_dry = False

    def ran_dry(self) -> None:
        """The transport has nothing more for this partition right now: commit as soon as the agents are through."""
        self._is_dry = True
        self.commit_if_due()

    def commit_soon(self) -> None:
        """Something outside of a fetch (a timer) changed the unit of work: commit unless records are on their way."""
        self._is_dry = self._is_dry or not self._backlog.queued.total()
        self.commit_if_due()

    @asynccontextmanager
    async def between_commits(self) -> AsyncIterator[None]:
        """Let no commit run meanwhile, unless records stop flowing: store and log then stand where the last one left
        them.
        """
        self._holders += 1
        try:
            while self._commit is not None:
                await asyncio.wait([self._commit])
            yield
        finally:
            self._holders -= 1
            self.commit_if_due()

    async def settle(self) -> None:
        """Commit until nothing is open, or this life has failed."""
        while not self.life.failed.done() and (self._commit or not self.is_empty()):
            running = self._commit or self._start_commit()
            done, _ = await asyncio.wait([running], timeout=COMMIT_TIMEOUT_S)
            if not done:
                number = self.partition.number
                self.life.fail(TransportError(f"a commit of partition {number} took over {COMMIT_TIMEOUT_S} s"))

    # ---- the commit

    def _start_commit(self) -> asyncio.Task[None]:
        name = f"commit of partition {self.partition.number}"
        running = self._commit = asyncio.get_running_loop().create_task(self._commit_open(), name=name)
        running.add_done_callback(partial(self.life.background.call, self._commit_ended))
        return running

    def _commit_ended(self, ended: asyncio.Task[None]) -> None:
        self._commit = None
        if (error := error_of(ended)) is not None:
            self._context.metrics.commit_failures += 1
            self.life.fail(error)
            return
        self._room.set()
        self.waiters.notify()
        self.commit_if_due()

    async def _commit_open(self) -> None:
        """Commit the open unit of work with the positions it has reached, and open the next; see commit.py."""
        context, rows = self._context, self.partition.rows
        started = time.monotonic()
        work, reached = self.open(), dict(self.positions)
        for source, offset in reached.items():
            if self._stored.get(source) != offset:
                self._put_position(work, source, offset)
        records = work.records
        rows.committing, self._work, self._opened_at = work, self.new(), 0.0
        self._room.set()
        with context.tracing.committing(work):
            await commit(
                work, self._group_offsets(reached), self._producer, rows.store, context.settings.app_id, context.probe
            )
        rows.committed()
        self._stored.update(reached)
        committed = self.partition.committed
        for source, offset in reached.items():
            committed[source] = max(offset, committed.get(source, 0))
        self._on_commit(work)
        context.metrics.commits += 1
        context.metrics.committed_records += records
        context.metrics.commit_records.observe(records)
        context.metrics.commit_seconds.observe(time.monotonic() - started)

    # ---- its end

    def cancel(self) -> None:
        """Start no commit by the clock any more, and have what waits for room look again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._room.set()

    async def close(self) -> None:
        """Let a running commit end; one that hangs is cancelled, which equals a crash as nothing is kept in memory."""
        running = self._commit
        if running is None:
            return
        _, pending = await asyncio.wait([running], timeout=COMMIT_TIMEOUT_S)
        if pending:
            running.cancel()
            await asyncio.wait([running])

    def drop(self) -> None:
        """Forget what is not committed; it comes again."""
        self._work = None
