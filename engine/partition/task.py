"""Partition task: one life of one partition - its start, what it is made of, its pauses and its end.

What it is made of stands in modules of its own, each knowing only those before it: the committed rows (stored.py), the
open unit of work and its commits (open_work.py), records that are handled in it (intake.py), what waits, is retried,
called for, rebuilt or expired (the satellites), and the ways of a fetch through all that (dispatch.py).
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Protocol

from engine.calls.partition_calls import PartitionCalls
from engine.declare.timers import TIMERS
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.lane_loop import LaneLoop
from engine.failures.lanes import LANES, WAITING
from engine.health.stalled import StalledFetches
from engine.partition.dispatch import Dispatch
from engine.partition.lingering import LingeringFetches
from engine.partition.timers import TimerLoop
from engine.positions.losses import Losses
from engine.positions.settling import settle
from engine.rebuilds.loop import RebuildLoop
from engine.store.damaged import intact_store
from engine.store.expiry import Expiry
from engine.store.faults import built_anew, disk_fault_key
from engine.store.note import StoreNote, note_damage
from engine.store.opening import changelogs_of, restore_store
from engine.store.restore import RestoreProgress
from engine.store.rows import Rows
from engine.store.scrub import Scrub
from engine.store.store import StoreDamaged
from engine.watchdog.stuck import StuckRecords
from engine.work.backlog import Backlog
from engine.work.context import EngineContext
from engine.work.intake import Intake
from engine.work.life import Life, TaskState
from engine.work.long_reads import LongReads
from engine.work.open_work import OpenWork
from engine.work.stored import StoredPartition
from engine.work.waiters import PositionWaiters, Wanted


class TaskContext(EngineContext, Protocol):
    """The engine, as a partition task sees it."""

    def resume(self, task: PartitionTask) -> None:
        """Let records flow into a partition from where its agents are, unless a rebalance is on."""


class PartitionTask(StoredPartition):
    """Owner of one partition number: what is committed, and all that changes it.

    One object is one life: after any failure a new one is made.
    """

    def __init__(self, number: int, context: TaskContext) -> None:
        super().__init__(number)
        self._context = context
        self.progress = RestoreProgress()
        self.life = Life(number, StuckRecords(context.settings, number), self._stop)
        self.waiters = PositionWaiters(self.has_done, context.waiting)
        self.backlog = Backlog(context.wake_transport)
        self._producer = context.broker.producer(number)
        self.work = OpenWork(self, self.life, self.backlog, self.waiters, self._producer, context, self._committed)
        self.losses = Losses(self.work, context, lambda topic: self.dispatch.is_busy_with(topic), self._take_up)
        self.lanes = LaneLoop(self.work, context, lambda *turns: self.dispatch.give_back(*turns))
        self.intake = Intake(self.work, self.backlog, self.lanes, context)
        self.stalled = StalledFetches(self.intake, self.lanes.room)
        self.calls = PartitionCalls(self.intake, self.lanes, self.losses, context)
        self.lanes.on_room = self.calls.there_is_room
        self._lingering = LingeringFetches(self.stalled, self.work, self.backlog, context.settings.commit_interval)
        self.dispatch = Dispatch(
            self.intake, self.losses, self.lanes, self.stalled, self.calls, self._lingering, context
        )  # fmt: skip
        self.rebuilds = RebuildLoop(self.work, self.lanes, self.losses, context)
        self.long_reads = LongReads()
        self._timers = TimerLoop(self.work, context)
        self._expiry = Expiry(self.work, context)
        self._scrub = Scrub(self, self.life.background, context)

    # ---- life

    async def start(self) -> None:
        """Settle what the owner before left, fence it, restore the store, read positions; raises what went wrong."""
        context = self._context
        await settle(self.number, self._producer, context)
        await self._producer.start()
        await context.ownership.confirm()
        store = await intact_store(self.number, changelogs_of(context), context)
        store.on_damage = self._report_damage
        self.open(Rows(store, context.cache_budget, context.metrics))
        await restore_store(store, self.number, context, self._producer, self.progress)
        await self.lanes.load()
        self.rebuilds.load()
        found = self.work.new()
        await self.work.start(await self.losses.load(found), found)
        self.life.stuck.forget_passed(self)
        # Not running yet: the transport still is where the life before had got to, until the engine has moved it.
        self.life.state = TaskState.SUSPENDED

    async def suspend(self) -> None:
        """Take no more records and commit what is open; the partition may go to another worker."""
        if not self.life.is_running():
            return
        self.life.suspend()
        self._cancel_handles()
        self._end_calls()
        self.work.keep_positions()
        await self.work.settle()
        self.backlog.clear()

    def resume(self) -> None:
        """Take records, for the first time or again after a rebalance that left the partition here."""
        self.work.resume()
        self.life.state = TaskState.RUNNING
        self._timers.plan()
        self._expiry.plan()
        self._scrub.plan()
        self.lanes.unpark()
        self.lanes.plan()
        self.rebuilds.plan()

    async def _take_up(self) -> None:
        """Let all agents go on from what is committed."""
        await self.suspend()
        self._context.resume(self)

    async def close(self) -> None:
        """Let go of producer and store; whatever is not committed is dropped and comes again."""
        self.life.close()
        async with AsyncExitStack() as ends:  # each of them, from the last to the first, whatever another raises
            ends.callback(self._close_store)
            ends.push_async_callback(self._producer.close)
            ends.push_async_callback(self.work.close)
            ends.push_async_callback(self.long_reads.close)
            ends.push_async_callback(self.rebuilds.close)
            for end in (self.waiters.close, self._end_calls, self._cancel_handles):
                ends.callback(end)

    def _close_store(self) -> None:
        self.work.drop()
        self.close_store()

    def _report_damage(self, damage: StoreDamaged) -> None:
        """The store gives back something else than was written to it: nothing more is read from it."""
        store = self.store
        note_damage(store.path, StoreNote(dict(store.marks)), str(damage))
        self._context.metrics.storage_errors += 1
        self._context.faults.report(disk_fault_key(self.number), built_anew(self.number, str(damage)))
        self.life.fail(damage)

    def _stop(self) -> None:
        """This life has failed: nothing of it goes on."""
        self._cancel_handles()
        self._end_calls()

    def _end_calls(self) -> None:
        self.calls.cancel()
        self._lingering.cancel()
        self.stalled.cancel()
        self.lanes.cancel()
        self.backlog.held.clear()

    def _cancel_handles(self) -> None:
        self.work.cancel()
        self._timers.cancel()
        self._expiry.cancel()
        self._scrub.cancel()
        self.rebuilds.cancel()
        self.long_reads.cancel()
        self.losses.cancel()

    # ---- what is committed

    def _committed(self, work: UnitOfWork) -> None:
        """Tell everything that keeps rows in mind of a unit of work that was just committed."""
        if self.life.stuck:
            self.life.stuck.forget_passed(self)
        if TIMERS in work.rows:
            self._timers.committed(work.rows[TIMERS])
            if not self.life.is_running():
                self._timers.cancel()
        if LANES in work.rows:
            self.lanes.committed(work.rows[LANES], work.rows.get(WAITING, {}))
        self.rebuilds.committed(work)
        self._context.commit_listeners.notify(self.number, work.rows)

    def has_done(self, agent: str, topic: str, wanted: Wanted) -> bool:
        """Whether `agent` has passed an offset, and nothing that is wanted waits in a lane."""
        if self.reached(agent, topic) < wanted.offset or self.losses.is_another_log((agent, topic)):
            return False
        if wanted.is_exact and wanted.offset - 1 in self.lanes.offsets.of(agent):
            return False
        return wanted.key is None or not self.lanes.has_waiting(agent, wanted.key)
