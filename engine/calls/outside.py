"""Calls to the outside of one agent in one partition: before the unit of work, side by side.

Records wait in a window (`call_window.py`), in the order of the topic. A record's call starts as soon as no earlier
record of its key is in the window, so calls of one key come one after the other and see what the one before has left.
Records whose call has ended are handled from the front of the window on: what is finished is committed while later
calls go on, and a crash repeats at most the calls of the window, under the same idempotency keys. A record whose turn
it is in its lane waits for its own call only, never for the front: the record there may wait for the room it makes.

Calls are made while the agent's circuit lets them through (`circuit.py`). While it does not, records wait here, the
window fills up, and its topic is not read further.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Coroutine, Sequence
from functools import partial
from itertools import repeat
from typing import Any

from engine.calls.circuit import CircuitState, Permit
from engine.calls.time_limit import within
from engine.calls.window import CallWindow, Entry
from engine.declare.agent import Agent
from engine.declare.errors import Unavailable
from engine.declare.handlers import Prepare, RecordHandler
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.classify import INFRASTRUCTURE_ERRORS, InfrastructureError
from engine.failures.lane_loop import LaneLoop
from engine.failures.lanes import NotNow
from engine.log.ports import Record
from engine.observe.about import about_record, told
from engine.watchdog.watch import Handling, watched, watched_steps
from engine.work.context import EngineContext
from engine.work.fetched import Fetched
from engine.work.intake import Intake
from engine.work.life import StaleBatch

log = logging.getLogger(__name__)

BACKOFF_MAX_S = 5.0


class OutsideCalls:
    """The window of one agent in one life of its partition; `StaleBatch` and failures end it with that life."""

    def __init__(
        self,
        intake: Intake,
        lanes: LaneLoop,
        agent: Agent[Any],
        prepare: Prepare,
        context: EngineContext,
    ) -> None:
        self._intake = intake
        self._work = intake.work
        self._life = intake.work.life
        self._backlog = intake.backlog
        self._lanes = lanes
        self._source = source = agent.name, agent.topic.name
        self._accept = context.accept(agent.topic.name)
        self._agent = agent
        self._prepare = prepare
        self._handle_record = agent.bind(self._accept)
        self._tracing = context.tracing
        self._calls_max = context.settings.outside_calls_max
        self._timeout_s = context.settings.call_timeout
        self.stands_still = False  # the record at the front has to wait in its lane, and finds no room there
        self._window = CallWindow()
        self._calls: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._circuit = context.circuit(source[0])
        self._circuit.join(self._wake.set)
        self._held = 0  # fetches that keep others away
        self._is_over = False
        self._runner = self._life.background.run(self._run(), f"calls of {source[0]}")

    def __bool__(self) -> bool:
        """Whether records wait here."""
        return bool(self._window)

    def add(self, fetched: Fetched) -> None:
        """Take a fetch into the window; its records are handled later. A full window keeps further fetches away."""
        if fetched.turns:
            self._window.add(Entry(*of) for of in zip(fetched.records, repeat(0), fetched.turns, strict=False))
        else:
            records = self._intake.unhandled(fetched, self._source[0])
            last = len(records) - 1
            self._window.add(
                Entry(record, fetched.next_offset if index == last else record.offset + 1)
                for index, record in enumerate(records)
            )
        if len(self._window) >= 2 * self._calls_max:
            self._held += 1
            self._backlog.hold(fetched.topic)
        self._wake.set()

    def first_offset(self) -> int | None:
        """The offset of the first record that waits here, None when none does."""
        first = next(iter(self._window.waiting()), None)
        return None if first is None else first.record.offset

    def there_is_room(self) -> None:
        """A record that has to wait in a lane may find room there now."""
        self._wake.set()

    def cancel(self) -> None:
        """End all calls; what they did is asked for again in the partition's next life."""
        self._is_over = True
        for running in (self._runner, *self._calls):
            running.cancel()
        self._circuit.leave(self._wake.set)
        self._tracing.abandon(entry.span for entry in self._window.waiting())
        self._window.clear()

    # ---- calls

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._start_calls()
                has_made_room = await self._take_turns()
                if await self._handle_ended() or has_made_room:
                    self._wake.set()  # keys have become free
        except StaleBatch as error:
            log.info("%s", error)

    def _start_calls(self) -> None:
        work, window = self._work.current, self._window
        while len(self._calls) < self._calls_max and self._circuit.allows() and (entry := window.take_ready()):
            if not self._may_call(entry):
                window.end(entry)
                continue
            try:
                call = self._call_for(entry, work)
            except INFRASTRUCTURE_ERRORS as error:
                raise InfrastructureError(f"{type(error).__name__}: {error}") from error
            except BaseException as error:
                entry.error, call = error, None
            if call is None:
                window.end(entry)
            else:
                self._start_call(entry, call)

    def _start_call(self, entry: Entry, call: Coroutine[Any, Any, Any]) -> None:
        if entry.span is None:
            entry.span = self._tracing.begin(entry.record, *self._source, self._life.number)
        permit = self._circuit.begin()
        self._window.call_begins(entry)
        context = self._tracing.context(entry.span)
        background = self._life.background
        running = background.run(self._call(entry, call, permit), f"call of {self._source[0]}", context)
        self._calls.add(running)
        running.add_done_callback(partial(background.call, self._call_ended, entry, call, permit))

    def _may_call(self, entry: Entry) -> bool:
        """Whether it is the record's turn: it is the first of its key in the window, so nothing before it is open."""
        lanes = self._lanes
        if entry.turn is not None:
            entry.held = not lanes.is_turn(entry.turn)
            if not entry.held:
                self._window.hold_back(entry.record.key)
        else:
            entry.held = self._is_blocked(entry.record)
        return not entry.held

    def _call_for(self, entry: Entry, work: UnitOfWork) -> Coroutine[Any, Any, Any] | None:
        return watched(self._handling(), entry.record, self._prepared, entry.record, work)

    def _handling(self) -> Handling:
        return Handling(*self._source, self._life.stuck)

    def _prepared(self, record: Record, work: UnitOfWork) -> Coroutine[Any, Any, Any] | None:
        message = self._accept(record, work.partition)
        if type(message.payload) not in self._agent:
            return None
        work.record = record
        return self._prepare(message, work)

    async def _call(self, entry: Entry, call: Coroutine[Any, Any, Any], permit: Permit) -> None:
        """Make one call; a record whose call found nobody waits for another one."""
        circuit = self._circuit
        try:
            entry.outcome = await within(self._timeout_s, watched_steps(self._handling(), entry.record, call))
        except BaseException as error:
            if self._is_over:  # cancelled by us; a CancelledError of the call's own making fails its record
                raise
            circuit.failed(permit, error)
            if isinstance(error, Unavailable) or self._is_one_of_many(permit):
                await self._back_off(entry, error)
                # Behind the others: what is wrong with this record must not fail every probe.
                self._window.ask_again(entry)
                return
            entry.error = error
        else:
            circuit.succeeded(permit)
        self._window.end(entry)

    def _is_one_of_many(self, permit: Permit) -> bool:
        """Whether so many calls fail that no record is to blame; a probe is judged alone, or it might fail for ever."""
        return not permit.is_probe and self._circuit.state is not CircuitState.CLOSED

    async def _back_off(self, entry: Entry, error: BaseException) -> None:
        """Pause after a failure among calls that succeed; otherwise the circuit says when to go on."""
        if self._circuit.state is not CircuitState.CLOSED:
            return
        await asyncio.sleep(entry.backoff_s * random.uniform(0.5, 1.0))
        if entry.backoff_s < BACKOFF_MAX_S <= 2 * entry.backoff_s:  # once, when it does not help for a while
            place = f"{self._source[1]}/{self._life.number}@{entry.record.offset}"
            extra = about_record(self._source[1], self._life.number, entry.record, agent=self._source[0])
            log.warning("%s waits at %s, and tries again: %s", self._source[0], place, told(error), extra=extra)
        entry.backoff_s = min(BACKOFF_MAX_S, 2 * entry.backoff_s)

    def _call_ended(
        self, entry: Entry, call: Coroutine[Any, Any, Any], permit: Permit, running: asyncio.Task[None]
    ) -> None:
        self._circuit.end(permit)
        self._window.call_ended(entry)
        self._calls.discard(running)
        self._wake.set()
        call.close()  # one that was cancelled before its first step would be missed otherwise

    # ---- records

    async def _take_turns(self) -> bool:
        """Handle records that have waited in lanes and whose calls have ended; whether there were any."""
        done = 0
        while entry := self._window.ended_turn():
            await self._take_turn(entry)
            done += 1
        if done:
            self._work.commit_soon()
            self._note_handled()
        return done > 0

    async def _take_turn(self, entry: Entry) -> None:
        """Handle one such record; one that was not called for will be given back again."""
        assert entry.turn is not None
        await self._work.wait_for_room()
        if entry.held:
            self._lanes.turn_over(entry.turn)
        else:
            self._lanes.take_turn(self._source, entry.turn, entry.record, self._handler([entry]))
        self._window.take_turn()
        self._tracing.abandon([entry.span])

    async def _handle_ended(self) -> bool:
        """Handle the records at the front whose calls have ended; whether there were any."""
        front = self._front()
        if not front:
            self.stands_still = False
            return False
        records = [entry.record for entry in front]
        done = await self._intake.run_records(self._source, self._handler(front), records, self._handled)
        self.stands_still = done < len(front) and not self._is_free(front[done])
        if self._held and len(self._window) < 2 * self._calls_max:
            self._backlog.let_go(self._source[1], self._held)
            self._held = 0
        self._note_handled()
        return done > 0

    def _note_handled(self) -> None:
        if not self._window:
            self._backlog.handled_all(self._source)

    def _handler(self, entries: Sequence[Entry]) -> RecordHandler:
        """What handles the records of these entries, with what their calls have come to."""
        by_record = {id(entry.record): entry for entry in entries}

        def handle_ended(record: Record, work: UnitOfWork) -> str:
            entry = by_record[id(record)]
            if entry.held:  # its lane has ended a moment ago
                self._wake.set()
                raise NotNow
            if entry.error is not None:
                raise entry.error
            work.outcome = entry.outcome
            return self._handle_record(record, work)

        return self._tracing.handler(handle_ended, *self._source, lambda record: by_record[id(record)].span)

    def _front(self) -> list[Entry]:
        """What can be handled together: the records at the front whose calls have ended."""
        front: list[Entry] = []
        for entry in self._window:
            if not entry.ended:
                break
            if self._is_free(entry):
                entry.begin_anew()
                self._window.ask_again(entry)
                self._wake.set()
                break
            front.append(entry)
        return front

    def _is_free(self, entry: Entry) -> bool:
        """Whether a record's lane has ended since it was held, by a person's decision: now it does need its call."""
        return entry.held and not self._is_blocked(entry.record)

    def _is_blocked(self, record: Record) -> bool:
        return self._lanes.is_blocked(self._source, record.key)

    def _handled(self, first: int, end: int) -> int:
        """Take handled records from the front; returns the agent's new position."""
        done = self._window.take(end - first)
        self._tracing.abandon(entry.span for entry in done)  # of those that wait in a lane instead
        return done[-1].next_offset
