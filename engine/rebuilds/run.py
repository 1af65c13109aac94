"""One projection of one partition made anew, in one life of the partition: read, compare, switch, clear."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, Final, NamedTuple

import msgspec
from msgspec.structs import replace

from engine.declare.agent import Projection
from engine.declare.errors import RecordError
from engine.declare.table import AnyTable, encode_prefix
from engine.declare.unit_of_work import MISSING, UnitOfWork
from engine.failures.classify import INFRASTRUCTURE_ERRORS, InfrastructureError, text_of
from engine.failures.lane_loop import LaneLoop
from engine.failures.unsettled import UnsettledRecords, touches_lanes
from engine.log.ports import Record
from engine.positions.losses import Losses
from engine.rebuilds.comparison import Comparison
from engine.rebuilds.rows import (
    CLEARING,
    DONE,
    FAILED,
    REBUILDS,
    REBUILT_ROWS,
    RUNNING,
    SAMPLES_MAX,
    Rebuild,
    RebuiltKey,
    begun_anew,
    difference,
    ended,
    plus,
    sum_of,
)
from engine.rebuilds.work import Counts, RebuildWork
from engine.watchdog.watch import Handling, watched
from engine.work.background import disregard
from engine.work.context import EngineContext
from engine.work.open_work import OpenWork

SLICE_S: Final = 0.005
BUSY_PAUSE_S: Final = 0.02  # between slices while the worker has other work: a fifth of the time at most
BLOCKED_PAUSE_S: Final = 0.02
ROWS_PER_SLICE: Final = 500
CONNECT_TIMEOUT_S: Final = 2.0
DIFFERENCES_PER_COMMIT: Final = 10_000  # 100 ms in which nothing else runs
DIFFERENCES_COUNTED_MAX: Final = 20_000
UNREADABLE: Final = object()

Phase = str


class Failed(NamedTuple):
    """A record that a handler could not handle in the rebuild."""

    record: Record
    error: BaseException


class RebuildRun:
    """Reads the source of a projection from where the rebuild's row says, and brings the rebuild to its end.

    Whatever changes rows is synchronous: the rebuild's row is read anew first, as somebody may have cancelled it.
    """

    def __init__(
        self, work: OpenWork, lanes: LaneLoop, losses: Losses, context: EngineContext, projection: Projection
    ) -> None:
        self.projection = projection
        self.phase: Phase = "reading"
        self.handled = 0
        self.began_at = time.monotonic()
        self._open = work
        self._partition = work.partition
        self._losses = losses
        self._context = context
        self._source = projection.name, projection.topic.name
        self._handle = context.bind_apart(projection)
        self._stuck_as = f"rebuild of {projection.name}"
        self._unsettled = UnsettledRecords(work.partition, lanes.offsets, self._source)
        self._work = self._new_work()
        self._reader = context.broker.reader(work.partition.number, [projection.topic.name])
        self._buffer: deque[Record] = deque()
        self._first = 0  # where this run began to read
        self._position = 0  # behind everything that is in the buffer or handled
        self._comparison: Comparison | None = None

    async def run(self) -> None:
        """Go on until the rebuild has ended; raises TransportError, StoreError and what is a mistake in here."""
        await self._unsettled.load()
        try:
            await self._connect()
            await self._seek()
            while (rebuild := self._rebuild()).is_active:
                if rebuild.state == CLEARING:
                    await self._clear()
                else:
                    await self._read_and_compare()
        finally:
            await self._reader.close()

    async def _connect(self) -> None:
        """Start the reader; one that is given up in the middle would leave a connection open."""
        starting = asyncio.ensure_future(self._reader.start())
        try:
            await asyncio.shield(starting)
        except asyncio.CancelledError:
            disregard(starting)
            await asyncio.wait([starting], timeout=CONNECT_TIMEOUT_S)
            raise

    def committed(self, work: UnitOfWork) -> None:
        """A unit of work was committed."""
        self._unsettled.committed(work)
        if self._comparison is not None:
            self._comparison.changed(work)

    def _rebuild(self) -> Rebuild:
        rebuild = self._open.current.get(REBUILDS, self.projection.name)
        assert rebuild is not None
        return rebuild

    def _put(self, rebuild: Rebuild) -> None:
        work = self._open.open()
        work.put(REBUILDS, self.projection.name, rebuild)
        work.release()
        self._open.commit_soon()

    def fail(self, error: str) -> None:
        """End the rebuild: nothing of it is switched."""
        rebuild = self._rebuild()
        if rebuild.state == RUNNING:
            self._put(ended(rebuild, FAILED, _now_ms(), error))

    def _new_work(self) -> RebuildWork:
        work, context = self._open, self._context
        return RebuildWork(work.partition.number, self.projection, work.open, context.encode, context.settings)

    async def _seek(self) -> None:
        rebuild = self._rebuild()
        self._first = rebuild.next
        await self._check_source()
        self._buffer.clear()
        self._position = rebuild.next
        self._reader.seek(self.projection.topic.name, rebuild.next)

    async def _check_source(self) -> bool:
        """Whether the topic has all that the rebuild reads: what is made of less would replace what is right."""
        if self._rebuild().state != RUNNING:
            return False
        topic = self.projection.topic.name
        start, _ = (await self._reader.bounds())[topic]
        missing = self._losses.why_incomplete(self._source, self._first, start)
        if missing is not None:
            self.fail(missing)
        return missing is None

    async def _turn(self) -> None:
        """Wait for this rebuild's turn: one at a time in a worker, and not while others fill the unit of work."""
        async with self._context.rebuild_turns:
            await asyncio.sleep(BUSY_PAUSE_S if self._context.is_busy() else 0)
        await self._open.wait_for_room()

    # ---- read

    async def _read_and_compare(self) -> None:
        """One walk, or as much of it as one commit can switch."""
        self.phase = "reading"
        if not await self._until_level(self._begin_comparison) or not await self._check_source():
            self._comparison = None
            return
        while self._comparison is not None:
            self.phase = "comparing"
            await self._walk(self._comparison)
            if not await self._until_level(self._conclude):
                break
        self._comparison = None

    async def _until_level(self, then: Callable[[Rebuild], None]) -> bool:
        """Read on until the rebuild is as far as the running projection, and call `then` in that very moment.

        False when the rebuild is no longer running.
        """
        while True:
            await self._turn()
            if not self._buffer and self._position < self._bound()[0]:
                await self._fetch()  # no pause after it: the running projection would be ahead again
            rebuild = self._rebuild()
            if rebuild.state != RUNNING:
                return False
            bound, is_level = self._bound()
            rebuild = self._read_slice(rebuild, bound)
            if rebuild.state == RUNNING and is_level and rebuild.next >= bound:
                then(rebuild)
                return True
            if rebuild.next >= bound:
                await asyncio.sleep(BLOCKED_PAUSE_S)

    async def _fetch(self) -> None:
        for records, position in (await self._reader.fetch()).values():
            self._buffer.extend(records)
            self._position = position

    def _bound(self) -> tuple[int, bool]:
        """How far the rebuild may go, and whether that is where the running projection is right now.

        Never past a record that is about to be tried again, nor past what is not committed while lanes change: what
        becomes of those is not known yet.
        """
        is_settled = not any(map(touches_lanes, self._open.in_flight()))
        reached = self._open.positions if is_settled else self._partition.committed
        position, due = reached.get(self._source, 0), self._unsettled.first_due()
        bound = position if due is None else min(position, due)
        return bound, is_settled and bound == position

    def _read_slice(self, rebuild: Rebuild, bound: int) -> Rebuild:
        """Handle what is here of the records before `bound`, for a share of the loop; the rebuild as it is then."""
        by = Handling(self._stuck_as, self._source[1], self._open.life.stuck)
        before, counts, failed = rebuild, Counts(), None
        share, began = self._context.loop_share, time.perf_counter()
        deadline = began + min(SLICE_S, share.next_s())
        buffer = self._buffer
        while buffer and buffer[0].offset < bound and failed is None:
            failed = self._read_record(buffer.popleft(), by, counts)
            if time.perf_counter() >= deadline:
                break
        share.used(time.perf_counter() - began)
        reached = min(buffer[0].offset if buffer else self._position, bound)
        rebuild = counts.added_to(rebuild, max(reached, rebuild.next), self._work)
        if failed is not None:
            rebuild = ended(rebuild, FAILED, _now_ms(), self._explain(failed))
        elif rebuild == before:
            return before
        self.handled += counts.applied
        self._work.flush()
        self._put(rebuild)
        return rebuild

    def _read_record(self, record: Record, by: Handling, counts: Counts) -> Failed | None:
        """Handle a record as the running projection has, unless it has not; what went wrong, if it matters."""
        offset, work = record.offset, self._work
        if offset in self._unsettled:
            counts.waiting += 1
            counts.waiting_sum = plus(counts.waiting_sum, sum_of(offset))
            return None
        if self._unsettled.is_discarded(offset):
            counts.discarded += 1
            return None
        record = self._unsettled.as_handled(record)
        work.record, work.now_ms = record, record.timestamp_ms
        try:
            watched(by, record, self._handle, record, work)
        except RecordError:
            work.rollback()
            counts.unreadable += 1
        except INFRASTRUCTURE_ERRORS as error:
            raise InfrastructureError(f"{type(error).__name__}: {error}") from error
        except BaseException as error:  # as in the running projection, a handler's SystemExit ends nothing else
            work.rollback()
            return Failed(record, error)
        else:
            work.release()
            counts.applied += 1
        return None

    def _explain(self, failed: Failed) -> str:
        place = f"{self._source[1]}/{self._partition.number}@{failed.record.offset}"
        self._open.life.stuck.forget(self._stuck_as)
        return f"{place}: {type(failed.error).__name__}: {text_of(failed.error)}"

    # ---- compare and switch

    def _begin_comparison(self, rebuild: Rebuild) -> None:
        self._comparison = Comparison(self._partition, self.projection.tables)

    async def _walk(self, comparison: Comparison) -> None:
        """Go on until all rows are looked at, or as many differ as may be dealt with at once."""
        enough = DIFFERENCES_COUNTED_MAX if self._rebuild().check else DIFFERENCES_PER_COMMIT
        while not comparison.is_over:
            await self._turn()
            if self._rebuild().state != RUNNING:
                return
            comparison.step()
            if len(comparison.differing) >= enough:
                return

    def _conclude(self, rebuild: Rebuild) -> None:
        """Count what differs now that both sides are equally far, and make it equal: all of it in one commit.

        What this takes from the rows beside the running ones may not be committed itself yet; then all of it is
        committed together, or none.
        """
        comparison = self._comparison
        assert comparison is not None
        if self._unsettled.sum() != rebuild.waiting_sum:
            # Somebody has decided about dead letters that were left out: their records belong in now.
            self._put(begun_anew(rebuild))
            self._comparison = None
            return
        for work in self._open.in_flight():
            comparison.changed(work)
        rebuild = self._settle(rebuild, comparison.take())
        if comparison.is_over or rebuild.check:
            rebuild = replace(rebuild, rows=comparison.rows, are_more=not comparison.is_over)
            self._put(ended(rebuild, DONE, _now_ms()))
            self._comparison = None
        else:
            self._put(rebuild)

    def _settle(self, rebuild: Rebuild, keys: set[RebuiltKey]) -> Rebuild:
        """Count the differing ones of these rows, and replace them unless they are only to be counted."""
        work = self._open.open()
        added = changed = removed = 0
        samples = list(rebuild.samples)
        for table, key, before, after in self._differing(work, keys):
            if before is None:
                added += 1
            elif after is None:
                removed += 1
            else:
                changed += 1
            if len(samples) < SAMPLES_MAX:
                samples.append(difference(table, key, None if before is UNREADABLE else before, after))
            if not rebuild.check:
                work.put(table, key, after)
        return replace(
            rebuild,
            added=rebuild.added + added,
            changed=rebuild.changed + changed,
            removed=rebuild.removed + removed,
            samples=tuple(samples),
        )

    def _differing(self, work: UnitOfWork, keys: set[RebuiltKey]) -> Sequence[tuple[AnyTable, Any, Any, Any]]:
        tables = {table.name: table for table in self.projection.tables}
        differing = []
        for rebuilt_key in sorted(keys):
            table = tables[rebuilt_key.table]
            key = table.key.decode(rebuilt_key.key)
            raw = work.get(REBUILT_ROWS, rebuilt_key)
            after = None if raw is None else table.decode_row(raw)
            before = self._running_row(table, key)
            if before is UNREADABLE or before != after:
                differing.append((table, key, before, after))
        return differing

    def _running_row(self, table: AnyTable, key: Any) -> Any:
        """The row as the records so far have left it, as it is stored: a row in memory may hide that it is damaged."""
        for work in reversed(self._open.in_flight()):
            row = work.rows.get(table, {}).get(key, MISSING)
            if row is not MISSING:
                return row
        try:
            raw = self._partition.read_raw(table, key)
            return None if raw is None else table.decode_row(raw)
        except msgspec.MsgspecError:
            return UNREADABLE

    # ---- clear

    async def _clear(self) -> None:
        """Remove the rows that the rebuild has made, and only then call it ended, or let it begin."""
        self.phase = "clearing"
        self._comparison = None
        while any(work.rows.get(REBUILT_ROWS) for work in self._open.in_flight()):  # those cannot be found yet
            self._open.commit_soon()
            await asyncio.sleep(BLOCKED_PAUSE_S)
        for table in self.projection.tables:
            prefix = start = encode_prefix(table.name)
            while keys := [key for key, _ in islice(self._partition.scan(REBUILT_ROWS, prefix, start), ROWS_PER_SLICE)]:
                work = self._open.open()
                for key in keys:
                    work.delete(REBUILT_ROWS, key)
                work.release()
                start = encode_prefix(table.name) + keys[-1].key + b"\0"
                await self._turn()
        self._work = self._new_work()
        rebuild = self._rebuild()
        self._put(replace(rebuild, state=rebuild.then))
        if rebuild.then == RUNNING:
            await self._seek()


def _now_ms() -> int:
    return int(time.time() * 1000)
