"""Calls to the outside (payments, mail) of one agent in one partition: before the unit of work, side by side.

Records wait in a window, in the order of the topic. A record's call starts as soon as no earlier record of its key is
in the window, so calls of one key come one after the other and see what the one before has left. Records whose call
has ended are handled from the front of the window on: what is finished is committed while later calls go on, and a
crash repeats at most the calls of the window, under the same idempotency keys.

Calls are made while the agent's circuit lets them through (`circuit.py`). While it does not, records wait here, the
window fills up, and its topic is not read further.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import deque
from collections.abc import Callable, Coroutine
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, Any

from streams.engine.about import about_record, told
from streams.engine.batch import Fetched, StaleBatch
from streams.engine.circuit import CircuitState, Permit
from streams.engine.context import EngineContext
from streams.engine.failures import INFRASTRUCTURE_ERRORS, InfrastructureError
from streams.engine.handlers import Handlers, RecordHandler
from streams.engine.lane_loop import NotNow
from streams.engine.lanes import WaitingKey
from streams.engine.unit_of_work import UnitOfWork
from streams.engine.watch import Handling, watched, watched_steps
from streams.envelope import Envelope
from streams.errors import Unavailable
from streams.time_limit import within
from streams.transport.base import Record

if TYPE_CHECKING:
    from streams.engine.partition_task import PartitionTask

log = logging.getLogger(__name__)

Prepare = Callable[[Envelope[Any], UnitOfWork], Coroutine[Any, Any, Any] | None]
"""Makes the call for a message, None where none is needed; synchronous, and reads only."""

BACKOFF_S = 0.1
BACKOFF_MAX_S = 5.0


class _Entry:
    """A record of the window. `next_offset` is where the agent is once it is handled.

    A record that has waited in a lane has a `turn` in its place, and moves no position. One that is `held` was not its
    aggregate's next when its call would have begun: there was none. `span` is that of the record, from its first call
    on, where tracing is on.
    """

    __slots__ = ("backoff_s", "ended", "error", "held", "next_offset", "outcome", "record", "span", "turn")

    def __init__(self, record: Record, next_offset: int, turn: WaitingKey | None = None) -> None:
        self.record = record
        self.next_offset = next_offset
        self.turn = turn
        self.held = False
        self.ended = False
        self.outcome: Any = None
        self.error: BaseException | None = None
        self.span: Any = None
        self.backoff_s = BACKOFF_S  # before the next call, if one fails


class OutsideCalls:
    """The window of one agent in one life of its partition; `StaleBatch` and failures end it with that life."""

    def __init__(
        self,
        task: PartitionTask,
        source: tuple[str, str],
        prepare: Prepare,
        handlers: Handlers,
        context: EngineContext,
    ) -> None:
        self._task = task
        self._source = source
        self._accept = context.accept(source[1])
        self._handlers = handlers
        self._prepare = prepare
        self._handle_record = context.bind(handlers, source[1])
        self._tracing = context.tracing
        self._calls_max = context.settings.outside_calls_max
        self._timeout_s = context.settings.call_timeout
        self._window: deque[_Entry] = deque()
        self._by_key: dict[bytes | None, deque[_Entry]] = {}  # the first of each key may call, or does
        self._ready: deque[_Entry] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._circuit = context.circuit(source[0])
        self._circuit.join(self._wake.set)
        self._held = 0  # fetches that keep others away
        self._is_over = False
        self._runner = asyncio.get_running_loop().create_task(self._run(), name=f"calls of {source[0]}")

    def __bool__(self) -> bool:
        """Whether records wait here."""
        return bool(self._window)

    def add(self, fetched: Fetched) -> None:
        """Take a fetch into the window; its records are handled later. A full window keeps further fetches away."""
        if fetched.turns:
            for turn, record in zip(fetched.turns, fetched.records, strict=True):
                self._append(_Entry(record, 0, turn))
        else:
            records = self._task.unhandled(fetched, self._source[0])
            for index, record in enumerate(records, start=1):
                self._append(_Entry(record, fetched.next_offset if index == len(records) else record.offset + 1))
        if len(self._window) >= 2 * self._calls_max:
            self._held += 1
            self._task.hold(fetched.topic)
        self._wake.set()

    def _append(self, entry: _Entry) -> None:
        self._window.append(entry)
        queue = self._by_key.setdefault(entry.record.key, deque())
        queue.append(entry)
        if len(queue) == 1:
            self._ready.append(entry)

    def there_is_room(self) -> None:
        """A record that has to wait in a lane may find room there now."""
        self._wake.set()

    def cancel(self) -> None:
        """End all calls; what they did is asked for again in the partition's next life."""
        self._is_over = True
        for running in (self._runner, *self._calls):
            running.cancel()
        self._circuit.leave(self._wake.set)
        self._tracing.abandon(entry.span for entry in self._window)
        self._window.clear()

    # ---- calls

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._start_calls()
                if self._window and self._window[0].ended and await self._handle_ended():
                    self._wake.set()  # keys have become free
        except StaleBatch as error:
            log.info("%s", error)
        except Exception as error:
            self._task.fail(error)

    def _start_calls(self) -> None:
        work = self._task.current_work
        while self._ready and len(self._calls) < self._calls_max and self._circuit.allows():
            entry = self._ready.popleft()
            if not self._may_call(entry):
                entry.ended = True
                continue
            try:
                call = self._call_for(entry, work)
            except INFRASTRUCTURE_ERRORS as error:
                raise InfrastructureError(f"{type(error).__name__}: {error}") from error
            except BaseException as error:
                entry.error, entry.ended = error, True
                continue
            if call is None:
                entry.ended = True
                continue
            if entry.span is None:
                entry.span = self._tracing.begin(entry.record, *self._source, self._task.number)
            permit = self._circuit.begin()
            context = self._tracing.context(entry.span)
            running = asyncio.get_running_loop().create_task(self._call(entry, call, permit), context=context)
            self._calls.add(running)
            running.add_done_callback(partial(self._call_ended, permit))

    def _may_call(self, entry: _Entry) -> bool:
        """Whether it is the record's turn: it is the first of its key in the window, so nothing before it is open."""
        lanes = self._task.lanes
        if entry.turn is not None:
            entry.held = not lanes.is_turn(entry.turn)
        else:
            entry.held = lanes.is_blocked(self._source[0], entry.record.key)
        return not entry.held

    def _call_for(self, entry: _Entry, work: UnitOfWork) -> Coroutine[Any, Any, Any] | None:
        return watched(self._handling(), entry.record, self._prepared, entry.record, work)

    def _handling(self) -> Handling:
        return Handling(*self._source, self._task.stuck)

    def _prepared(self, record: Record, work: UnitOfWork) -> Coroutine[Any, Any, Any] | None:
        message = self._accept(record, work.partition)
        if type(message.payload) not in self._handlers:
            return None
        work.record = record
        return self._prepare(message, work)

    async def _call(self, entry: _Entry, call: Coroutine[Any, Any, Any], permit: Permit) -> None:
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
                self._ready.append(entry)  # behind the others: what is wrong with this record must not fail every probe
                return
            entry.error = error
        else:
            circuit.succeeded(permit)
        entry.ended = True

    def _is_one_of_many(self, permit: Permit) -> bool:
        """Whether so many calls fail that no record is to blame; a probe is judged alone, or it might fail for ever."""
        return not permit.is_probe and self._circuit.state is not CircuitState.CLOSED

    async def _back_off(self, entry: _Entry, error: BaseException) -> None:
        """Pause after a failure among calls that succeed; otherwise the circuit says when to go on."""
        if self._circuit.state is not CircuitState.CLOSED:
            return
        await asyncio.sleep(entry.backoff_s * random.uniform(0.5, 1.0))
        if entry.backoff_s < BACKOFF_MAX_S <= 2 * entry.backoff_s:  # once, when it does not help for a while
            place = f"{self._source[1]}/{self._task.number}@{entry.record.offset}"
            extra = about_record(self._source[1], self._task.number, entry.record, agent=self._source[0])
            log.warning("%s waits at %s, and tries again: %s", self._source[0], place, told(error), extra=extra)
        entry.backoff_s = min(BACKOFF_MAX_S, 2 * entry.backoff_s)

    def _call_ended(self, permit: Permit, running: asyncio.Task[None]) -> None:
        self._circuit.end(permit)
        self._calls.discard(running)
        if not running.cancelled() and (error := running.exception()) is not None:
            self._task.fail(error)
        self._wake.set()

    # ---- records

    async def _handle_ended(self) -> bool:
        """Handle the records at the front whose calls have ended; whether there were any."""
        front = self._front()
        if not front:
            return False
        by_record = {id(entry.record): entry for entry in front}

        def handle_ended(record: Record, work: UnitOfWork) -> str:
            entry = by_record[id(record)]
            if entry.held:  # its lane has ended a moment ago
                self._wake.set()
                raise NotNow
            if entry.error is not None:
                raise entry.error
            work.outcome = entry.outcome
            return self._handle_record(record, work)

        handle = self._tracing.handler(handle_ended, *self._source, lambda record: by_record[id(record)].span)
        if front[0].turn is not None:
            await self._take_turn(front[0], front[0].turn, handle)
            done = 1
        else:
            records = [entry.record for entry in front]
            done = await self._task.run_records(self._source, handle, records, self._handled)
        if self._held and len(self._window) < 2 * self._calls_max:
            self._task.let_go(self._source[1], self._held)
            self._held = 0
        if not self._window:
            self._task.handled_all(self._source)
        return done > 0

    async def _take_turn(self, entry: _Entry, turn: WaitingKey, handle: RecordHandler) -> None:
        """Handle a record that has waited in a lane; one that was not called for will be given back again."""
        await self._task.wait_for_room()
        if entry.held:
            self._task.lanes.turn_over(turn)
        else:
            self._task.lanes.take_turn(self._source, turn, entry.record, handle)
        self._pop(1)
        self._task.commit_soon()

    def _front(self) -> list[_Entry]:
        """What can be handled together: the records at the front, or one whose turn it is in its lane."""
        front: list[_Entry] = []
        for entry in self._window:
            if not entry.ended or (front and entry.turn is not None):
                break
            if entry.held and entry.turn is None and not self._task.lanes.is_blocked(self._source[0], entry.record.key):
                # The lane has ended since, by somebody's hand: now the record does need its call.
                entry.held = entry.ended = False
                self._ready.append(entry)
                self._wake.set()
                break
            front.append(entry)
            if entry.turn is not None:
                break
        return front

    def _handled(self, first: int, end: int) -> int:
        """Take handled records from the front; returns the agent's new position."""
        return self._pop(end - first)[-1].next_offset

    def _pop(self, count: int) -> list[_Entry]:
        """Take records from the front: the next one of each key may call."""
        done = list(islice(self._window, count))
        for entry in done:
            self._window.popleft()
            queue = self._by_key[entry.record.key]
            queue.popleft()
            if queue:
                self._ready.append(queue[0])
            else:
                del self._by_key[entry.record.key]
        self._tracing.abandon(entry.span for entry in done)  # of those that wait in a lane instead
        return done
