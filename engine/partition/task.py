"""Partition task: everything of one partition number in one life: producer, store, unit of work, positions, timers."""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from enum import Enum
from functools import partial
from operator import attrgetter
from typing import TypeVar

from engine.calls.partition_calls import PartitionCalls
from engine.declare.handlers import RecordHandler
from engine.declare.partition import Rendering
from engine.declare.table import AnyTable, Table
from engine.declare.timers import TIMERS
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.classify import INFRASTRUCTURE_ERRORS, InfrastructureError
from engine.failures.lane_loop import LaneLoop, NotNow
from engine.failures.lanes import LANES, WAITING
from engine.health.stalled import StalledFetches
from engine.log.ports import Record, TransportError
from engine.partition.background import Background, error_of
from engine.partition.batch import Fetched, StaleBatch
from engine.partition.commit import commit
from engine.partition.context import EngineContext
from engine.partition.lingering import LingeringFetches
from engine.partition.long_reads import LongReads
from engine.partition.timers import TimerLoop
from engine.partition.waiters import PositionWaiters, Wanted
from engine.positions.hanging import settle
from engine.positions.losses import Losses
from engine.positions.positions import POSITIONS, AgentPosition, position_key
from engine.rebuilds.loop import RebuildLoop
from engine.store.damaged import intact_store
from engine.store.expiry import Expiry
from engine.store.faults import built_anew, disk_fault_key
from engine.store.note import StoreNote, note_damage, note_marks
from engine.store.opening import changelogs_of, restore_store
from engine.store.restore import RestoreProgress
from engine.store.rows import Rows
from engine.store.scrub import Scrub
from engine.store.snapshot import StoreSnapshot
from engine.store.store import Store, StoreDamaged
from engine.watchdog.stuck import StuckRecords
from engine.watchdog.watch import WATCH, Handling, boundary

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

WAITING_TYPE = ""  # of a record that has to wait: it counts when it is handled
COMMIT_TIMEOUT_S = 20.0
_offset = attrgetter("offset")


def _nothing_to_observe(value: float) -> None:
    """Stands in until the type of the first record is known."""


class TaskState(Enum):
    """Life of a partition task."""

    RESTORING = "restoring"
    RUNNING = "running"
    SUSPENDED = "suspended"  # restored, but the group has not said that the partition is here
    CLOSED = "closed"


class PartitionTask:
    """Owner of one partition number.

    One object is one life: after any failure a new one is made. `failed` resolves with the error that ended it. Batches
    carry the `epoch` they were fetched in; one of an earlier epoch is refused.
    """

    def __init__(self, number: int, context: EngineContext) -> None:
        self.number = number
        self.epoch = 0
        self.state = TaskState.RESTORING
        self.progress = RestoreProgress()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.positions: dict[tuple[str, str], int] = {}  # by agent and topic, what the open unit of work has reached
        self.committed: dict[tuple[str, str], int] = {}  # by agent and topic, what readers may rely on
        self.waiters = PositionWaiters(self.has_done, context.waiting)
        self.queued: Counter[str] = Counter()  # fetches per topic that agents have not finished
        self.held: Counter[str] = Counter()  # fetches per topic that wait for something else, and keep others away
        self.oldest_ms: dict[tuple[str, str], int] = {}  # production time of the oldest record an agent has to handle
        self.stuck = StuckRecords(context.settings, number)
        self.background = Background(self.fail)
        self.losses = Losses(self, context)
        self._stored: dict[tuple[str, str], int] = {}  # by agent and topic, what the positions' rows say
        self._context = context
        self._producer = context.broker.producer(number)
        self._rows: Rows | None = None
        self._work: UnitOfWork | None = None
        self._commit_task: asyncio.Task[None] | None = None
        self._commit_timer: asyncio.TimerHandle | None = None
        self._commits_held = 0  # by those who need a moment between two commits
        self._room = asyncio.Event()
        self._opened_at = 0.0  # when the open unit of work got its first record, monotonic; 0 while it has none
        self._dry = False
        self.calls = PartitionCalls(self, context)
        self.busy_at = 0.0  # when records that do not linger came last, monotonic
        self._lingering = LingeringFetches(self, context.settings.commit_interval)
        self.lanes = LaneLoop(self, context)
        self.stalled = StalledFetches(self, self.lanes.room)
        self.rebuilds = RebuildLoop(self, context)
        self.long_reads = LongReads()
        self._timers = TimerLoop(self, context)
        self._expiry = Expiry(self, context)
        self._scrub = Scrub(self, context)

    # ---- life

    async def start(self) -> None:
        """Settle what the owner before left, fence it, restore the store, read positions; raises what went wrong."""
        context = self._context
        await settle(self.number, self._producer, context)
        await self._producer.start()
        await context.ownership.confirm()
        store = await intact_store(self.number, changelogs_of(context), context)
        store.on_damage = self._report_damage
        self._rows = Rows(store, context.cache_budget, context.metrics)
        await restore_store(store, self.number, context, self._producer, self.progress)
        await self.lanes.load()
        self.rebuilds.load()
        self.positions = await self.losses.load(found := self._new_work())
        self.committed, self._stored = dict(self.positions), dict(self.positions)
        await self._commit_before_records(found)
        self.stuck.forget_passed(self)
        self._work = self._new_work()
        # Not running yet: the transport still is where the life before had got to, until the engine has moved it.
        self.state = TaskState.SUSPENDED

    def is_restored(self) -> bool:
        """Whether the start is over, and the end of this life is not."""
        return self.state in (TaskState.RUNNING, TaskState.SUSPENDED)

    async def _commit_before_records(self, work: UnitOfWork) -> None:
        """Commit what the start has found out: only what is written down is missed when it is removed."""
        if work.is_empty():
            return
        context, rows = self._context, self._open_rows
        rows.committing = work
        offsets = self._group_offsets(self.positions)
        await commit(work, offsets, self._producer, rows.store, context.settings.app_id, lambda step: None)
        rows.committed()

    @property
    def is_committing(self) -> bool:
        """Whether a commit is under way."""
        return self._commit_task is not None

    def is_running(self) -> bool:
        """Whether records are taken."""
        return self.state is TaskState.RUNNING

    async def suspend(self) -> None:
        """Take no more records and commit what is open; the partition may go to another worker."""
        if self.state is not TaskState.RUNNING:
            return
        self.state = TaskState.SUSPENDED
        self.epoch += 1
        self._cancel_handles()
        self._end_calls()
        self.keep_positions()
        await self.settle()
        self.queued.clear()
        self.oldest_ms.clear()

    def resume(self) -> None:
        """Take records, for the first time or again after a rebalance that left the partition here."""
        self.positions = dict(self.committed)
        self.state = TaskState.RUNNING
        self._timers.plan()
        self._expiry.plan()
        self._scrub.plan()
        self.lanes.unpark()
        self.lanes.plan()
        self.rebuilds.plan()

    def keep_positions(self) -> None:
        """Let the next commit write positions that have moved past transaction markers alone.

        Without that a marker may be removed before it is known to be passed, and look like a lost record.
        """
        work = self.open_work()
        for (agent, topic), offset in self.positions.items():
            if self._stored.get((agent, topic)) != offset == self.committed.get((agent, topic)):
                self._put_position(work, agent, topic, offset)

    def _put_position(self, work: UnitOfWork, agent: str, topic: str, offset: int) -> None:
        row = AgentPosition(agent, topic, offset, self.losses.topic_id((agent, topic)))
        work.put(POSITIONS, position_key(agent, topic), row)

    def move(self, source: tuple[str, str], offset: int) -> None:
        """Let an agent of a suspended partition go on elsewhere; its row is up to the caller."""
        self.positions[source] = self.committed[source] = self._stored[source] = offset

    async def settle(self) -> None:
        """Commit until nothing is open, or the task has failed."""
        while not self.failed.done() and (self._commit_task or self._has_work()):
            running = self._commit_task or self._start_commit()
            done, _ = await asyncio.wait([running], timeout=COMMIT_TIMEOUT_S)
            if not done:
                self.fail(TransportError(f"a commit of partition {self.number} took over {COMMIT_TIMEOUT_S} s"))

    async def close(self) -> None:
        """Let go of producer and store; whatever is not committed is dropped and comes again."""
        self.state = TaskState.CLOSED
        self.epoch += 1
        async with AsyncExitStack() as ends:  # each of them, from the last to the first, whatever another raises
            ends.callback(self._close_store)
            ends.push_async_callback(self._producer.close)
            ends.push_async_callback(self._end_commit)
            ends.push_async_callback(self.long_reads.close)
            ends.push_async_callback(self.rebuilds.close)
            for end in (self.waiters.close, self._room.set, self._end_calls, self._cancel_handles):
                ends.callback(end)

    def _close_store(self) -> None:
        if (rows := self._rows) is None:
            return
        rows.store.close()
        self._rows = self._work = None
        if not rows.store.is_damaged:
            note_marks(rows.store)

    async def _end_commit(self) -> None:
        """Let a running commit end; one that hangs is cancelled, which equals a crash as nothing is kept in memory."""
        running = self._commit_task
        if running is None:
            return
        _, pending = await asyncio.wait([running], timeout=COMMIT_TIMEOUT_S)
        if pending:
            running.cancel()
            await asyncio.wait([running])

    def fail(self, error: BaseException) -> None:
        """End this life; the engine makes a new one."""
        if not self.failed.done():
            self.failed.set_result(error)
        self.epoch += 1
        self.state = TaskState.CLOSED
        self._cancel_handles()
        self._end_calls()
        self._room.set()

    def _report_damage(self, damage: StoreDamaged) -> None:
        """The store gives back something else than was written to it: nothing more is read from it."""
        store = self._open_rows.store
        note_damage(store.path, StoreNote(dict(store.marks)), str(damage))
        self._context.metrics.storage_errors += 1
        self._context.faults.report(disk_fault_key(self.number), built_anew(self.number, str(damage)))
        self.fail(damage)

    # ---- records in

    def fetch_offset(self, topic: str) -> int:
        """Where to go on reading `topic`: the position of its slowest agent that does not stand still."""
        agents = self._context.agents_of(topic)
        if self.losses:
            agents = tuple(agent for agent in agents if (agent, topic) not in self.losses)
        return min((self.positions.get((agent, topic), 0) for agent in agents), default=0)

    def fetched(self, topic: str, records: Sequence[Record], next_offset: int) -> Fetched:
        """Take note of a fetch that is on its way to the agents of `topic`."""
        self._dry = False
        agents = self._context.agents_of(topic)
        self.queued[topic] += len(agents)
        for agent in agents:
            self.oldest_ms.setdefault((agent, topic), records[0].timestamp_ms)
        return Fetched(self, topic, records, next_offset)

    def give_back(self, fetched: Fetched) -> None:
        """Let an agent have records again that have waited in lanes."""
        self.queued[fetched.topic] += len(self._context.agents_of(fetched.topic))
        self._context.deliver(fetched)

    def not_for(self, fetched: Fetched) -> None:
        """An agent was handed a fetch that is another agent's."""
        self.finished(fetched)

    def linger(self, topic: str, records: Sequence[Record], next_offset: int) -> bool:
        """Take a fetch that need not go to its agents, as all of them let it linger; False for any other."""
        agents = self._context.agents_of(topic)
        # Never past one that is still on its way to an agent: its records would lie before the agent's position.
        if (
            self.losses
            or self.queued[topic]
            or not self._lingering.take(agents, Fetched(self, topic, records, next_offset))
        ):
            return False
        for agent in agents:
            self.oldest_ms.setdefault((agent, topic), records[0].timestamp_ms)
        return True

    def ran_dry(self) -> None:
        """The transport has nothing more for this partition right now: commit as soon as the agents are through."""
        self._dry = True
        self._commit_if_due()

    def passed(self, topic: str, offset: int) -> None:
        """The transport moved past transaction markers (or dropped records) without delivering anything."""
        if self.is_busy_with(topic):
            return
        for agent in self._context.agents_of(topic):
            key = agent, topic
            if key not in self.losses and self.positions.get(key, 0) == self.committed.get(key, 0) < offset:
                self.positions[key] = self.committed[key] = offset
        self.waiters.notify()

    def hold(self, topic: str) -> None:
        """A fetch of `topic` counts as waiting although its agent goes on; not one that a commit waits for."""
        self.held[topic] += 1

    def let_go(self, topic: str, fetches: int = 1) -> None:
        """Fetches that were held are handled: there is room for others."""
        self.held[topic] -= fetches
        self._context.wake_transport()

    def is_busy_with(self, topic: str) -> bool:
        """Whether agents still have to finish records of `topic` that were fetched."""
        waiting = self._lingering, self.stalled, self.calls
        return bool(self.queued[topic]) or any(where.is_busy_with(topic) for where in waiting)

    def unhandled(self, fetched: Fetched, agent: str) -> Sequence[Record]:
        """The records of a fetch that `agent` has not handled yet."""
        records, position = fetched.records, self.positions.get((agent, fetched.topic), 0)
        if not records or records[0].offset >= position:
            return records
        return records[bisect_left(records, position, key=_offset) :]

    async def process(self, fetched: Fetched, agent: str, handle: RecordHandler) -> None:
        """Handle the records of a fetch for an agent, in order and in slices, within the partition's unit of work.

        A record that fails is taken back alone, and tried again or made a dead letter. Raises StaleBatch when the
        partition is lost on the way; nothing of an uncommitted record then stays.
        """
        source = agent, fetched.topic
        if self.losses.is_behind_gap(source, fetched):
            self.finished(fetched)
            return
        try:
            if fetched.turns:
                await self.lanes.take_turns(source, fetched, handle)
                self.commit_soon()
            else:
                await self.handle_fetch(source, fetched, handle)
        except InfrastructureError as error:
            self.fail(error)
            raise StaleBatch(str(error)) from error
        finally:
            if fetched.epoch == self.epoch and not fetched.turns and source not in self.stalled:
                self.oldest_ms.pop(source, None)
            self.busy_at = time.monotonic()
            self.finished(fetched)

    async def process_later(self, fetched: Fetched, agent: str, handle: RecordHandler) -> None:
        """Handle the records of a fetch for a deferred agent when the partition is quiet; returns before that is done.

        When all agents of the topic are deferred, later fetches go to `handle` past them.
        """
        if fetched.turns or self.losses.is_behind_gap((agent, fetched.topic), fetched):
            await self.process(fetched, agent, handle)
            return
        try:
            self.check(fetched.epoch, fetched.topic)
            source = agent, fetched.topic
            self._lingering.add(source, fetched, handle)
        except StaleBatch as error:
            log.info("%s", error)
        finally:
            self.finished(fetched)

    async def handle_fetch(self, source: tuple[str, str], fetched: Fetched, handle: RecordHandler) -> None:
        """Handle what is not handled yet of a fetch, and move past it; raises as `run_records` does.

        What finds no room to wait stands still, and with it all that comes behind it.
        """
        self.check(fetched.epoch, fetched.topic)
        if source in self.stalled or not await self.try_fetch(source, fetched, handle):
            self.stalled.add(source, fetched, handle)

    async def try_fetch(self, source: tuple[str, str], fetched: Fetched, handle: RecordHandler) -> bool:
        """Handle what is not handled yet of a fetch as far as there is room; whether that was all of it."""
        self.check(fetched.epoch, fetched.topic)
        records = self.unhandled(fetched, source[0])
        done = await self.run_records(source, handle, records, lambda _, end: records[end - 1].offset + 1)
        if done < len(records):
            return False
        self.positions[source] = max(fetched.next_offset, self.positions.get(source, 0))
        return True

    async def run_records(
        self,
        source: tuple[str, str],
        handle: RecordHandler,
        records: Sequence[Record],
        position_after: Callable[[int, int], int],
    ) -> int:
        """Handle records in slices. `position_after(first, end)` is where the agent is after those of a slice.

        Returns how many were handled: fewer than all when the next one has to wait in a lane that has no room for it.
        Raises StaleBatch when the partition is lost on the way, InfrastructureError when no record is to blame.
        """
        epoch, topic = self.epoch, source[1]
        done, has_room = 0, True
        while done < len(records) and has_room:
            self.oldest_ms[source] = records[done].timestamp_ms
            await self.wait_for_room()
            self.check(epoch, topic)
            first = done
            done, has_room = self._run_slice(handle, source, records, first)
            if done > first:
                self.positions[source] = position_after(first, done)
            self._commit_if_due()
            if done < len(records):
                await asyncio.sleep(0)
        self.check(epoch, topic)
        return done

    def handled_all(self, source: tuple[str, str]) -> None:
        """No record of `source` waits for a call to the outside, or lingers, any more."""
        self.oldest_ms.pop(source, None)
        self._context.wake_transport()

    def finished(self, fetched: Fetched) -> None:
        """An agent is through with a fetch."""
        if fetched.epoch == self.epoch:
            self.queued[fetched.topic] -= 1
            self._context.wake_transport()
            self._commit_if_due()

    def check(self, epoch: int, topic: str) -> None:
        """Raise StaleBatch for what was fetched in an earlier epoch."""
        if epoch != self.epoch:
            raise StaleBatch(f"partition {self.number} was lost while {topic} was processed")

    @boundary
    def _run_slice(
        self, handle: RecordHandler, source: tuple[str, str], records: Sequence[Record], first: int
    ) -> tuple[int, bool]:
        """Handle records from index `first` on without a break, as long as there is a share of the loop's turn.

        Returns the index behind them, and False when the record there has to wait and finds no room.
        """
        work, metrics, clock = self.open_work(), self._context.metrics, time.perf_counter
        work.now_ms = int(time.time() * 1000)
        release, blocked = work.release, self.lanes.blocked(source)
        watch, watch.by = WATCH, Handling(*source, self.stuck)
        if self.stuck:
            handle = self.stuck.checking(handle, source)
        share = self._context.loop_share
        began = now = clock()
        deadline = now + share.next_s()
        last_type, observe = "", _nothing_to_observe
        index = first
        end = min(len(records), first + self._records_max - work.records)
        while index < end:
            record = records[index]
            work.record = record
            try:
                if blocked and record.key in blocked and self.lanes.hold(work, source, record):
                    event_type = WAITING_TYPE
                else:
                    try:
                        watch.record = record
                        event_type = handle(record, work)
                    finally:
                        watch.record = None
            except INFRASTRUCTURE_ERRORS as error:
                raise InfrastructureError(f"{type(error).__name__}: {error}") from error
            except NotNow:
                return index, False
            except BaseException as error:  # a handler's SystemExit is no reason to end the worker
                event_type = self._context.known_type(record.value)
                if not self._take_back(work, source, record, error, event_type):
                    return index, False
            index += 1
            release()
            if event_type != last_type:
                last_type = event_type
                observe = metrics.event(event_type).seconds.observe if event_type else _nothing_to_observe
            before, now = now, clock()
            observe(now - before)
            if now >= deadline:
                break
        share.used(now - began)
        return index, True

    def _take_back(
        self, work: UnitOfWork, source: tuple[str, str], record: Record, error: BaseException, event_type: str
    ) -> bool:
        """Take back what the record did, and let it wait or make it a dead letter; False when there is no room."""
        try:
            ended = self.lanes.fail(work, source, record, error)
        except NotNow:
            return False
        self._context.metrics.event(event_type).failed(ended)
        return True

    @property
    def current_work(self) -> UnitOfWork:
        """The open unit of work, to read from."""
        assert self._work is not None
        return self._work

    @property
    def _records_max(self) -> int:
        """With so many records a unit of work is full."""
        return self._context.loop_share.records_max(self._context.settings.commit_records_max)

    def open_work(self) -> UnitOfWork:
        """The open unit of work, whose interval begins with its first change."""
        assert self._work is not None
        self._opened_at = self._opened_at or time.monotonic()
        return self._work

    async def wait_for_room(self) -> None:
        """Hold back while the open unit of work is full and the one before is still being committed."""
        while self.state is not TaskState.CLOSED and self.open_work().records >= self._records_max:
            self._room.clear()
            self._commit_if_due()
            await self._room.wait()

    # ---- commit

    def _has_work(self) -> bool:
        return self.positions != self.committed or (self._work is not None and not self._work.is_empty())

    def _commit_if_due(self) -> None:
        """Commit when the input has run dry, the interval is over, or the unit of work is full."""
        is_possible = self._commit_task is None and not self._commits_held and self.state is TaskState.RUNNING
        if not is_possible or not self._has_work():
            return
        settings, now = self._context.settings, time.monotonic()
        work = self.open_work()
        due_at = self._opened_at + settings.commit_interval
        dry = self._dry and not self.queued.total() and not self._lingering.is_handling
        if dry or now >= due_at or work.records >= self._records_max:
            self._start_commit()
        elif self._commit_timer is None:
            self._commit_timer = self.background.later(due_at - now, self._on_interval)

    def _on_interval(self) -> None:
        self._commit_timer = None
        self._commit_if_due()

    def commit_soon(self) -> None:
        """Something outside of a fetch (a timer) changed the unit of work: commit unless records are on their way."""
        self._dry = self._dry or not self.queued.total()
        self._commit_if_due()

    @asynccontextmanager
    async def between_commits(self) -> AsyncIterator[None]:
        """Let no commit run meanwhile, unless records stop flowing: store and log then stand where the last one left
        them.
        """
        self._commits_held += 1
        try:
            while self._commit_task is not None:
                await asyncio.wait([self._commit_task])
            yield
        finally:
            self._commits_held -= 1
            self._commit_if_due()

    def _start_commit(self) -> asyncio.Task[None]:
        running = asyncio.get_running_loop().create_task(self._commit(), name=f"commit of partition {self.number}")
        self._commit_task = running
        running.add_done_callback(partial(self.background.call, self._commit_ended))
        return running

    def _commit_ended(self, ended: asyncio.Task[None]) -> None:
        self._commit_task = None
        if (error := error_of(ended)) is not None:
            self._context.metrics.commit_failures += 1
            self.fail(error)
            return
        self._room.set()
        self.waiters.notify()
        self._commit_if_due()

    async def _commit(self) -> None:
        """Commit the open unit of work with the positions it has reached, and open the next; see commit.py."""
        context, rows = self._context, self._rows
        assert rows is not None
        started = time.monotonic()
        work, reached = self.open_work(), dict(self.positions)
        for (agent, topic), offset in reached.items():
            if self._stored.get((agent, topic)) != offset:
                self._put_position(work, agent, topic, offset)
        records = work.records
        rows.committing, self._work, self._opened_at = work, self._new_work(), 0.0
        self._room.set()
        with context.tracing.committing(work):
            await commit(
                work, self._group_offsets(reached), self._producer, rows.store, context.settings.app_id, context.probe
            )
        rows.committed()
        self._stored.update(reached)
        for source, offset in reached.items():
            self.committed[source] = max(offset, self.committed.get(source, 0))
        if self.stuck:
            self.stuck.forget_passed(self)
        if TIMERS in work.rows:
            self._timers.committed(work.rows[TIMERS])
            if self.state is not TaskState.RUNNING:
                self._timers.cancel()
        if LANES in work.rows:
            self.lanes.committed(work.rows[LANES], work.rows.get(WAITING, {}))
        self.rebuilds.committed(work)
        context.commit_listeners.notify(self.number, work.rows)
        context.metrics.commits += 1
        context.metrics.committed_records += records
        context.metrics.commit_records.observe(records)
        context.metrics.commit_seconds.observe(time.monotonic() - started)

    def _group_offsets(self, reached: dict[tuple[str, str], int]) -> dict[tuple[str, int], int]:
        """What the group may forget: for each topic the minimum over its agents."""
        offsets = {}
        for topic in {topic for _, topic in reached}:
            agents = self._context.agents_of(topic)
            if agents:
                offsets[topic, self.number] = min(reached.get((agent, topic), 0) for agent in agents)
        return offsets

    # ---- reads

    def read(self, table: Table[K, V], key: K, *, keep: bool = True) -> V | None:
        """The committed row of `key`, None where there is none; not kept in the cache without `keep`."""
        return self._open_rows.read(table, key, keep)

    def rendered(self, rendering: Rendering[K, V], key: K) -> bytes | None:
        """The committed row of `key` as it is rendered, None where there is none."""
        return self._open_rows.rendered(rendering, key)

    def scan(
        self, table: Table[K, V], prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[K, V]]:
        """Committed rows whose key bytes begin with `prefix`, from the key bytes `start` on, in key order."""
        return self._open_rows.scan(table, prefix, start, reverse)

    def read_raw(self, table: Table[K, V], key: K) -> bytes | None:
        """The committed row of `key` as it is stored: what is in memory may hide that it is damaged there."""
        return self._open_rows.store.get(table.storage_key(key))

    def scan_raw(self, table: AnyTable, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Committed rows as they are stored; otherwise as `scan`."""
        return self._open_rows.scan_raw(table, prefix, start)

    def snapshot(self) -> StoreSnapshot:
        """All committed rows as they are now."""
        return StoreSnapshot(self._open_rows.store)

    def in_flight(self) -> list[UnitOfWork]:
        """What is not committed yet: the unit of work that is being committed, if one is, and the open one."""
        return [work for work in (self._open_rows.committing, self._work) if work is not None]

    def reached(self, agent: str, topic: str) -> int:
        """The offset before which everything of `topic` is handled by `agent` and committed."""
        return self.committed.get((agent, topic), 0)

    def has_done(self, agent: str, topic: str, wanted: Wanted) -> bool:
        """Whether `agent` has passed an offset, and nothing that is wanted waits in a lane."""
        if self.reached(agent, topic) < wanted.offset or self.losses.is_another_log((agent, topic)):
            return False
        if wanted.is_exact and wanted.offset - 1 in self.lanes.offsets.of(agent):
            return False
        return wanted.key is None or not self.lanes.has_waiting(agent, wanted.key)

    def scrub(self, start: bytes, deadline: float) -> bytes | None:
        """Read the store from a key on, to see that it can be read; see Store.scrub."""
        return self._open_rows.store.scrub(start, deadline)

    def store_size_bytes(self) -> int:
        """Bytes of the store on disk."""
        return self._rows.store.size_bytes() if self._rows is not None else 0

    @property
    def store(self) -> Store:
        """The open store; raises InfrastructureError when the task is not open."""
        return self._open_rows.store

    @property
    def _open_rows(self) -> Rows:
        if self._rows is None:
            raise InfrastructureError(f"partition {self.number} is not open")
        return self._rows

    def _new_work(self) -> UnitOfWork:
        context = self._context
        return context.tracing.unit_of_work(
            self.number,
            self._open_rows,
            context.partition_for,
            context.encode,
            context.settings,
            context.reactions,
        )

    def _end_calls(self) -> None:
        self.calls.cancel()
        self._lingering.cancel()
        self.stalled.cancel()
        self.lanes.cancel()
        self.held.clear()

    def _cancel_handles(self) -> None:
        if self._commit_timer is not None:
            self._commit_timer.cancel()
            self._commit_timer = None
        self._timers.cancel()
        self._expiry.cancel()
        self._scrub.cancel()
        self.rebuilds.cancel()
        self.long_reads.cancel()
        self.losses.cancel()
