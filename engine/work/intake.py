"""Intake: records are handled within the open unit of work, slice by slice, each with a savepoint of its own."""

from __future__ import annotations

import asyncio
import time
from bisect import bisect_left
from collections.abc import Callable, Sequence, Set
from operator import attrgetter
from typing import Protocol

from engine.declare.handlers import RecordHandler
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.classify import INFRASTRUCTURE_ERRORS, InfrastructureError
from engine.failures.lanes import Ended, NotNow
from engine.log.ports import Record
from engine.watchdog.watch import WATCH, Handling, boundary
from engine.work.backlog import Backlog
from engine.work.context import EngineContext
from engine.work.fetched import Fetched
from engine.work.open_work import OpenWork

WAITING_TYPE = ""  # of a record that has to wait: it counts when it is handled
_offset = attrgetter("offset")


class Lanes(Protocol):
    """Where records wait behind one of their key that failed; see lane_loop.py."""

    def blocked(self, source: tuple[str, str]) -> Set[bytes]:
        """Keys of which records of this agent and topic may have to wait; as of any later moment, too."""

    def hold(self, work: UnitOfWork, source: tuple[str, str], record: Record) -> bool:
        """Let a record wait if its aggregate does; whether it does. Raises NotNow."""

    def fail(self, work: UnitOfWork, source: tuple[str, str], record: Record, error: BaseException) -> Ended:
        """Take back what a record did, and let it wait or make it a dead letter; how it ended. Raises NotNow."""


class Intake:
    """Records of one life of a partition on their way into the open unit of work."""

    def __init__(self, work: OpenWork, backlog: Backlog, lanes: Lanes, context: EngineContext) -> None:
        self.work = work
        self.backlog = backlog
        self._life = work.life
        self._lanes = lanes
        self._context = context

    def unhandled(self, fetched: Fetched, agent: str) -> Sequence[Record]:
        """The records of a fetch that `agent` has not handled yet."""
        records, position = fetched.records, self.work.positions.get((agent, fetched.topic), 0)
        if not records or records[0].offset >= position:
            return records
        return records[bisect_left(records, position, key=_offset) :]

    async def try_fetch(self, source: tuple[str, str], fetched: Fetched, handle: RecordHandler) -> bool:
        """Handle what is not handled yet of a fetch as far as there is room; whether that was all of it.

        It moves past the fetch then. Raises as `run_records` does.
        """
        self._life.check(fetched.epoch, fetched.topic)
        records = self.unhandled(fetched, source[0])
        done = await self.run_records(source, handle, records, lambda _, end: records[end - 1].offset + 1)
        if done < len(records):
            return False
        positions = self.work.positions
        positions[source] = max(fetched.next_offset, positions.get(source, 0))
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
        life, work = self._life, self.work
        epoch, topic = life.epoch, source[1]
        done, has_room = 0, True
        while done < len(records) and has_room:
            self.backlog.oldest_ms[source] = records[done].timestamp_ms
            await work.wait_for_room()
            life.check(epoch, topic)
            first = done
            done, has_room = self._run_slice(handle, source, records, first)
            if done > first:
                work.positions[source] = position_after(first, done)
            work.commit_if_due()
            if done < len(records):
                await asyncio.sleep(0)
        life.check(epoch, topic)
        return done

    def finished(self, fetched: Fetched) -> None:
        """An agent is through with a fetch."""
        if fetched.epoch == self._life.epoch:
            self.backlog.finished(fetched.topic)
            self.work.commit_if_due()

    @boundary
    def _run_slice(
        self, handle: RecordHandler, source: tuple[str, str], records: Sequence[Record], first: int
    ) -> tuple[int, bool]:
        """Handle records from index `first` on without a break, as long as there is a share of the loop's turn.

        Returns the index behind them, and False when the record there has to wait and finds no room.
        """
        work, metrics, clock = self.work.open(), self._context.metrics, time.perf_counter
        work.now_ms = int(time.time() * 1000)
        release, blocked, stuck = work.release, self._lanes.blocked(source), self._life.stuck
        watch, watch.by = WATCH, Handling(*source, stuck)
        if stuck:
            handle = stuck.checking(handle, source)
        share = self._context.loop_share
        began = now = clock()
        deadline = now + share.next_s()
        last_type, observe = "", _nothing_to_observe
        index = first
        end = min(len(records), first + self.work.records_max - work.records)
        while index < end:
            record = records[index]
            work.record = record
            try:
                if blocked and record.key in blocked and self._lanes.hold(work, source, record):
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
            ended = self._lanes.fail(work, source, record, error)
        except NotNow:
            return False
        self._context.metrics.event(event_type).failed(ended)
        return True


def _nothing_to_observe(value: float) -> None:
    """Stands in until the type of the first record is known."""
