"""Partition task: everything of one partition number, committed in one transaction.

The commit, in this order (numbers are repeated in `PartitionTask._commit`):

1. encode dirty rows once per key, however often they changed;
2. begin the transaction;
3. send outputs and changelog rows as pre-built record batches;
4. add the source offsets;
5. commit the transaction;
6. write rows and changelog positions to RocksDB in one batch.

A crash before 5 leaves nothing behind; a crash after 5 is repaired from the changelog. Any error in 2 to 6 destroys the
task with all it holds in memory, because nobody knows what the broker made of the request.
"""

from __future__ import annotations

import asyncio
import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from enum import Enum
from operator import attrgetter
from typing import Any, TypeVar

from streams.engine.batch import Fetched, StaleBatch
from streams.engine.cache import ABSENT, RowCache
from streams.engine.context import EngineContext
from streams.engine.failures import InfrastructureError, dead_letter
from streams.engine.handlers import Handlers, RecordHandler
from streams.engine.positions import POSITIONS, AgentPosition, position_key
from streams.engine.restore import IDENTITY_KEY, RestoreProgress, new_identity, restore
from streams.engine.store import ChangelogMark, Store, StoreError
from streams.engine.table import AnyTable, Table
from streams.engine.timers import TIMERS, Timer, TimerKey, encode_due
from streams.engine.unit_of_work import MISSING, UnitOfWork
from streams.engine.waiters import PositionWaiters
from streams.transport.base import Outgoing, Record, TransportError

log = logging.getLogger(__name__)

K = TypeVar("K")
V = TypeVar("V")

SLICE_S = 0.005  # the loop is given back this often, so that heartbeats and HTTP stay alive
ROWS_PER_SLICE = 2000
COMMIT_TIMEOUT_S = 20.0
TIMERS_PER_RUN = 500
_offset = attrgetter("offset")


class TaskState(Enum):
    """Life of a partition task."""

    RESTORING = "restoring"
    RUNNING = "running"
    SUSPENDED = "suspended"
    CLOSED = "closed"


class PartitionTask:
    """Owner of one partition number: its producer, its store, its unit of work and its positions.

    One object is one life: after any failure a new one is made. `failed` resolves with the error that ended it.
    """

    def __init__(self, number: int, context: EngineContext) -> None:
        self.number = number
        self.epoch = 0
        self.state = TaskState.RESTORING
        self.progress = RestoreProgress()
        self.failed: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()
        self.positions: dict[tuple[str, str], int] = {}  # what the open unit of work has reached
        self.committed: dict[tuple[str, str], int] = {}  # what readers may rely on
        self.waiters = PositionWaiters(self.reached)
        self.queued: Counter[str] = Counter()  # fetches per topic that agents have not finished
        self._context = context
        self._producer = context.broker.producer(number)
        self._store: Store | None = None
        self._cache = RowCache(context.settings.cache_rows_max)
        self._work = self._new_work()
        self._committing: UnitOfWork | None = None
        self._commit_task: asyncio.Task[None] | None = None
        self._commit_timer: asyncio.TimerHandle | None = None
        self._room = asyncio.Event()
        self._opened_at = 0.0
        self._dry = False
        self._last_tables: set[AnyTable] = set()
        self._timer_handle: asyncio.TimerHandle | None = None

    # ---- life

    async def start(self) -> None:
        """Fence the owner before, open the store, restore it, read positions; raises what went wrong."""
        context = self._context
        await self._producer.start()
        self._store = Store(context.store_path(self.number))
        topics = {table.changelog_topic(context.settings.app_id): table for table in context.tables.values()}
        reader = context.broker.reader(self.number, list(topics))
        try:
            await reader.start()
            without_identity = await restore(
                self._store, reader, topics, context.settings.delete_retention, self.progress
            )
        finally:
            await reader.close()
        if without_identity:
            await self._identify(without_identity)
        for _, row in self.scan(POSITIONS):
            self.positions[row.agent, row.topic] = row.offset
        self.committed = dict(self.positions)
        self.state = TaskState.RUNNING
        self._plan_timers()

    async def suspend(self) -> None:
        """Take no more records and commit what is open; the partition may go to another worker."""
        if self.state is not TaskState.RUNNING:
            return
        self.state = TaskState.SUSPENDED
        self.epoch += 1
        self._cancel_handles()
        await self.flush()
        self.queued.clear()

    def resume(self) -> None:
        """Go on after a rebalance that left the partition here."""
        self.state = TaskState.RUNNING
        self.positions = dict(self.committed)
        self._plan_timers()

    async def flush(self) -> None:
        """Commit until nothing is open, or the task has failed."""
        while not self.failed.done() and (self._commit_task or self._has_work()):
            commit = self._commit_task or self._start_commit()
            done, _ = await asyncio.wait([commit], timeout=COMMIT_TIMEOUT_S)
            if not done:
                self.fail(TransportError(f"a commit of partition {self.number} took over {COMMIT_TIMEOUT_S} s"))

    async def close(self) -> None:
        """Let go of producer and store; whatever is not committed is dropped and comes again."""
        self.state = TaskState.CLOSED
        self.epoch += 1
        self._cancel_handles()
        self.waiters.close()
        await self._end_commit()
        self._work, self._cache = self._new_work(), RowCache(0)
        await self._producer.close()
        if self._store is not None:
            self._store.close()
            self._store = None

    async def _end_commit(self) -> None:
        """Let a running commit end. Only one that hangs is cancelled: with nothing left in memory that equals a crash."""
        commit = self._commit_task
        if commit is None:
            return
        _, pending = await asyncio.wait([commit], timeout=COMMIT_TIMEOUT_S)
        if pending:
            commit.cancel()
            await asyncio.wait([commit])

    def fail(self, error: BaseException) -> None:
        """End this life; the engine makes a new one."""
        if not self.failed.done():
            self.failed.set_result(error)
        self.epoch += 1
        self.state = TaskState.CLOSED
        self._room.set()

    # ---- records in

    def fetch_offset(self, topic: str) -> int:
        """Where to go on reading `topic`: the position of its slowest agent."""
        agents = self._context.agents_of(topic)
        return min((self.positions.get((agent, topic), 0) for agent in agents), default=0)

    def fetched(self, topic: str, records: Sequence[Record], next_offset: int) -> Fetched:
        """Take note of a fetch that is on its way to the agents of `topic`."""
        self._dry = False
        self.queued[topic] += len(self._context.agents_of(topic))
        return Fetched(self, topic, records, next_offset)

    def ran_dry(self) -> None:
        """The transport has nothing more for this partition right now: commit as soon as the agents are through."""
        self._dry = True
        self._commit_if_due()

    def passed(self, topic: str, offset: int) -> None:
        """The transport moved past transaction markers (or dropped records) without delivering anything."""
        if self.queued[topic]:
            return
        for agent in self._context.agents_of(topic):
            key = agent, topic
            if self.positions.get(key, 0) == self.committed.get(key, 0) < offset:
                self.positions[key] = self.committed[key] = offset
        self.waiters.notify()

    def unhandled(self, fetched: Fetched, agent: str) -> Sequence[Record]:
        """The records of a fetch that `agent` has not handled yet."""
        records, position = fetched.records, self.positions.get((agent, fetched.topic), 0)
        if not records or records[0].offset >= position:
            return records
        return records[bisect_left(records, position, key=_offset) :]

    async def process(self, fetched: Fetched, agent: str, handlers: Handlers | RecordHandler) -> None:
        """Handle the records of a fetch in slices; see Batch.process."""
        handle = self._context.bind(handlers, fetched.topic)
        try:
            records = self.unhandled(fetched, agent)
            while records:
                await self._wait_for_room()
                self._check(fetched)
                handled = self._run_slice(handle, agent, fetched.topic, records)
                self.positions[agent, fetched.topic] = records[handled - 1].offset + 1
                records = records[handled:]
                self._commit_if_due()
                if records:
                    await asyncio.sleep(0)
            self._check(fetched)
            self.positions[agent, fetched.topic] = max(
                fetched.next_offset, self.positions.get((agent, fetched.topic), 0)
            )
        except InfrastructureError as error:
            self.fail(error)
            raise StaleBatch(str(error)) from error
        finally:
            if fetched.epoch == self.epoch:
                self.queued[fetched.topic] -= 1
                self._context.wake_transport()
                self._commit_if_due()

    def _check(self, fetched: Fetched) -> None:
        if fetched.epoch != self.epoch:
            raise StaleBatch(f"partition {self.number} was lost while {fetched.topic} was processed")

    def _run_slice(self, handle: RecordHandler, agent: str, topic: str, records: Sequence[Record]) -> int:
        """Handle records for about 5 ms, nothing can interleave; returns how many."""
        work, metrics, clock = self._work, self._context.metrics, time.perf_counter
        if not self._opened_at:
            self._opened_at = time.monotonic()
        now = clock()
        deadline = now + SLICE_S
        handled = 0
        room = self._context.settings.commit_records_max - work.records
        for record in records:
            try:
                work.record = record
                event_type, status = handle(record, work), "ok"
            except (InfrastructureError, StoreError, MemoryError) as error:
                work.rollback()
                raise InfrastructureError(f"{type(error).__name__}: {error}") from error
            except Exception as error:
                work.rollback()
                dead_letter(work, topic, agent, record, error)
                metrics.dead_letters += 1
                event_type, status = "unknown", "dead_letter"
                log.warning("%s/%d@%d is a dead letter: %s", topic, self.number, record.offset, error)
            work.release()
            handled += 1
            done = clock()
            metrics.event(event_type).observe(status, done - now)
            now = done
            if now >= deadline or handled >= room:
                break
        return handled

    async def _wait_for_room(self) -> None:
        """Hold back while the open unit of work is full and the one before is still being committed."""
        while self._work.records >= self._context.settings.commit_records_max and not self.failed.done():
            self._room.clear()
            self._commit_if_due()
            await self._room.wait()

    # ---- timers

    def _plan_timers(self) -> None:
        """Wake up when the next timer falls due."""
        if self._timer_handle is not None:
            self._timer_handle.cancel()
            self._timer_handle = None
        first = next(iter(self.scan(TIMERS)), None)
        if first is not None and self.state is TaskState.RUNNING:
            delay = max(0.0, first[0].due_ms / 1000 - time.time())
            self._timer_handle = asyncio.get_running_loop().call_later(delay, self._run_timers)

    def _run_timers(self) -> None:
        """Handle committed timers that are due, each like a record: its changes and its end in one unit of work.

        A timer set and due within the open unit of work fires after that is committed.
        """
        self._timer_handle = None
        work, now_ms = self._work, int(time.time() * 1000)
        due_rows = [row for _, row in self._due_timers(now_ms)]
        due = [row for row in due_rows if self._is_pending(row)]
        for timer in due:
            self._run_timer(work, timer)
        if due:
            self._opened_at = self._opened_at or time.monotonic()
            self._dry = self._dry or not self.queued.total()
            self._commit_if_due()
        elif not due_rows:
            self._plan_timers()

    def _due_timers(self, now_ms: int) -> Iterator[tuple[TimerKey, Timer]]:
        for count, (key, row) in enumerate(self.scan(TIMERS)):
            if key.due_ms > now_ms or count >= TIMERS_PER_RUN:
                return
            yield key, row

    def _is_pending(self, timer: Timer) -> bool:
        return self._work.get(TIMERS, TimerKey(timer.due_ms, timer.kind, timer.key)) is not None

    def _run_timer(self, work: UnitOfWork, timer: Timer) -> None:
        try:
            self._context.timer_handler(timer.kind)(timer, work)
        except (InfrastructureError, StoreError, MemoryError) as error:
            work.rollback()
            self.fail(error)
            return
        except Exception as error:
            work.rollback()
            log.exception("timer %s of %s failed; it is recorded as a dead letter", timer.kind, timer.key)
            record = Record(timer.due_ms, timer.due_ms, timer.key.encode(), timer.payload, ())
            dead_letter(work, f"timer {timer.kind}", "timers", record, error)
            self._context.metrics.dead_letters += 1
        work.cancel(timer.kind, timer.key, timer.due_ms)
        work.release()

    # ---- commit

    def _has_work(self) -> bool:
        return not self._work.is_empty() or self.positions != self.committed

    def _commit_if_due(self) -> None:
        """Commit when the input has run dry, the interval is over, or the unit of work is full."""
        if self._commit_task is not None or self.state is not TaskState.RUNNING or not self._has_work():
            return
        settings = self._context.settings
        now = time.monotonic()
        self._opened_at = self._opened_at or now
        due_at = self._opened_at + settings.commit_interval
        dry = self._dry and not self.queued.total()
        if dry or now >= due_at or self._work.records >= settings.commit_records_max:
            self._start_commit()
        elif self._commit_timer is None:
            self._commit_timer = asyncio.get_running_loop().call_later(due_at - now, self._on_interval)

    def _on_interval(self) -> None:
        self._commit_timer = None
        self._commit_if_due()

    def _start_commit(self) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(self._commit(), name=f"commit of partition {self.number}")
        self._commit_task = task
        task.add_done_callback(self._commit_ended)
        return task

    def _commit_ended(self, task: asyncio.Task[None]) -> None:
        self._commit_task = None
        error = task.exception() if not task.cancelled() else asyncio.CancelledError("commit was cancelled")
        if error is not None:
            self._context.metrics.commit_failures += 1
            self.fail(error)
            return
        self._room.set()
        self.waiters.notify()
        if self._timer_handle is None or TIMERS in self._last_tables:
            self._plan_timers()
        self._commit_if_due()

    async def _commit(self) -> None:
        """Steps 1 to 6; an error anywhere ends this life of the partition."""
        started = time.monotonic()
        work, reached = self._work, dict(self.positions)
        for (agent, topic), offset in reached.items():
            if self.committed.get((agent, topic)) != offset:
                work.put(POSITIONS, position_key(agent, topic), AgentPosition(agent, topic, offset))
        work.release()
        self._work, self._committing, self._opened_at = self._new_work(), work, 0.0
        self._room.set()
        probe = self._context.probe
        # 1. encode dirty rows once per key
        changes = {table: await self._encode_rows(work, table) for table in work.rows}
        batches: dict[tuple[str, int], Sequence[Outgoing]] = dict(work.outputs_by_partition())
        app_id = self._context.settings.app_id
        for table, rows in changes.items():
            batches[table.changelog_topic(app_id), self.number] = [(key, value, ()) for key, value in rows]
        # 2. begin the transaction
        probe("before 2")
        await self._producer.begin()
        probe("after 2")
        # 3. send outputs and changelog rows
        ends = await self._producer.send(batches)
        probe("after 3")
        # 4. add the source offsets
        await self._producer.send_offsets(self._group_offsets(reached))
        probe("after 4")
        # 5. commit the transaction
        await self._producer.commit()
        probe("after 5")
        # 6. rows and changelog positions in one write
        self._apply(work, changes, ends)
        probe("after 6")
        for position, offset in reached.items():
            self.committed[position] = max(offset, self.committed.get(position, 0))
        self._committing = None
        metrics = self._context.metrics
        metrics.commits += 1
        metrics.committed_records += work.records - 1
        metrics.commit_seconds.observe(time.monotonic() - started)

    async def _encode_rows(self, work: UnitOfWork, table: AnyTable) -> list[tuple[bytes, bytes | None]]:
        encoded: list[tuple[bytes, bytes | None]] = []
        for count, row in enumerate(work.encoded_rows(table)):
            encoded.append(row)
            if count % ROWS_PER_SLICE == ROWS_PER_SLICE - 1:
                await asyncio.sleep(0)
        return encoded

    def _group_offsets(self, reached: dict[tuple[str, str], int]) -> dict[tuple[str, int], int]:
        """What the group may forget: for each topic the minimum over its agents."""
        topics = {topic for _, topic in reached}
        return {
            (topic, self.number): min(reached.get((agent, topic), 0) for agent in self._context.agents_of(topic))
            for topic in topics
            if self._context.agents_of(topic)
        }

    def _apply(
        self,
        work: UnitOfWork,
        changes: dict[AnyTable, list[tuple[bytes, bytes | None]]],
        ends: Any,
    ) -> None:
        app_id = self._context.settings.app_id
        marks = {}
        for table in changes:
            topic = table.changelog_topic(app_id)
            mark = self._open_store.mark(topic)
            marks[topic] = ChangelogMark(ends[topic, self.number], mark.identity, mark.identity_offset)
        self._open_store.write(((table.prefix, rows) for table, rows in changes.items()), marks)
        put = self._cache.put
        for table, rows in work.rows.items():
            for key, row in rows.items():
                put((table, key), row)
        self._last_tables = set(changes)

    async def _identify(self, topics: Sequence[str]) -> None:
        """Give new changelogs the record by which a store recognises them."""
        await self._producer.begin()
        batches = {(topic, self.number): [(IDENTITY_KEY, new_identity(), ())] for topic in topics}
        ends = await self._producer.send(batches)
        await self._producer.commit()
        marks = {
            topic: ChangelogMark(end, batches[topic, number][0][1], end - 1) for (topic, number), end in ends.items()
        }
        self._open_store.write((), marks)

    # ---- reads

    def committed_or_committing(self, table: Table[K, V], key: K) -> V | None:
        """The row that the unit of work being committed left, or the committed one."""
        if self._committing is not None:
            rows = self._committing.rows.get(table)
            if rows is not None:
                row = rows.get(key, MISSING)
                if row is not MISSING:
                    return row  # type: ignore[no-any-return]
        return self.read(table, key)

    def read(self, table: Table[K, V], key: K) -> V | None:
        """The committed row of `key`, None where there is none."""
        cached = self._cache.get((table, key))
        if cached is not ABSENT:
            self._context.metrics.cache_hits += 1
            return cached  # type: ignore[no-any-return]
        self._context.metrics.cache_misses += 1
        raw = self._open_store.get(table.storage_key(key))
        row = None if raw is None else table.decode_row(raw)
        self._cache.put((table, key), row)
        return row

    def scan(
        self, table: Table[K, V], prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[K, V]]:
        """Committed rows whose key bytes begin with `prefix`, from the key bytes `start` on, in key order."""
        skip = len(table.prefix)
        first = table.prefix + start if start else b""
        for key, value in self._open_store.scan(table.prefix + prefix, first, reverse):
            yield table.key.decode(key[skip:]), table.decode_row(value)

    def reached(self, agent: str, topic: str) -> int:
        """The offset before which everything of `topic` is handled by `agent` and committed."""
        return self.committed.get((agent, topic), 0)

    def store_size_bytes(self) -> int:
        """Bytes of the store on disk."""
        return self._store.size_bytes() if self._store is not None else 0

    @property
    def _open_store(self) -> Store:
        if self._store is None:
            raise InfrastructureError(f"partition {self.number} is not open")
        return self._store

    def _new_work(self) -> UnitOfWork:
        context = self._context
        return UnitOfWork(self.number, self, context.partition_for, context.encode)

    def _cancel_handles(self) -> None:
        for handle in (self._commit_timer, self._timer_handle):
            if handle is not None:
                handle.cancel()
        self._commit_timer = self._timer_handle = None
