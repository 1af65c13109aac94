"""Calls to the outside (payments, mail) of one agent in one partition: before the unit of work, side by side.

Records wait in a window, in the order of the topic. A record's call starts as soon as no earlier record of its key is
in the window, so calls of one key come one after the other and see what the one before has left. Records whose call
has ended are handled from the front of the window on: what is finished is committed while later calls go on, and a
crash repeats at most the calls of the window, under the same idempotency keys.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections import deque
from collections.abc import Callable, Coroutine
from itertools import islice
from typing import TYPE_CHECKING, Any

from streams.engine.batch import Fetched, StaleBatch
from streams.engine.context import EngineContext
from streams.engine.failures import INFRASTRUCTURE_ERRORS, InfrastructureError
from streams.engine.handlers import Handlers
from streams.engine.unit_of_work import UnitOfWork
from streams.engine.watch import Handling, watched, watched_steps
from streams.envelope import Envelope
from streams.errors import Unavailable
from streams.transport.base import Record

if TYPE_CHECKING:
    from streams.engine.partition_task import PartitionTask

log = logging.getLogger(__name__)

Prepare = Callable[[Envelope[Any], UnitOfWork], Coroutine[Any, Any, Any] | None]
"""Makes the call for a message, None where none is needed; synchronous, and reads only."""

BACKOFF_S = 0.1
BACKOFF_MAX_S = 5.0
WARNING_PAUSE_S = 10.0


class _Entry:
    """A record of the window. `next_offset` is where the agent is once it is handled."""

    __slots__ = ("ended", "error", "next_offset", "outcome", "record")

    def __init__(self, record: Record, next_offset: int) -> None:
        self.record = record
        self.next_offset = next_offset
        self.ended = False
        self.outcome: Any = None
        self.error: BaseException | None = None


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
        self._calls_max = context.settings.outside_calls_max
        self._window: deque[_Entry] = deque()
        self._by_key: dict[bytes | None, deque[_Entry]] = {}  # the first of each key may call, or does
        self._ready: deque[_Entry] = deque()
        self._calls: set[asyncio.Task[None]] = set()
        self._quiet_until = 0.0
        self._wake = asyncio.Event()
        self._held = 0  # fetches that keep others away
        self._is_over = False
        self._runner = asyncio.get_running_loop().create_task(self._run(), name=f"calls of {source[0]}")

    def __bool__(self) -> bool:
        """Whether records wait here."""
        return bool(self._window)

    def add(self, fetched: Fetched) -> None:
        """Take a fetch into the window; its records are handled later. A full window keeps further fetches away."""
        records = self._task.unhandled(fetched, self._source[0])
        for index, record in enumerate(records, start=1):
            entry = _Entry(record, fetched.next_offset if index == len(records) else record.offset + 1)
            self._window.append(entry)
            queue = self._by_key.setdefault(record.key, deque())
            queue.append(entry)
            if len(queue) == 1:
                self._ready.append(entry)
        if len(self._window) >= 2 * self._calls_max:
            self._held += 1
            self._task.hold(fetched.topic)
        self._wake.set()

    def cancel(self) -> None:
        """End all calls; what they did is asked for again in the partition's next life."""
        self._is_over = True
        for running in (self._runner, *self._calls):
            running.cancel()
        self._window.clear()

    # ---- calls

    async def _run(self) -> None:
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                self._start_calls()
                if self._window and self._window[0].ended:
                    await self._handle_ended()
                    self._wake.set()  # keys have become free
        except StaleBatch as error:
            log.info("%s", error)
        except Exception as error:
            self._task.fail(error)

    def _start_calls(self) -> None:
        work = self._task.current_work
        while self._ready and len(self._calls) < self._calls_max:
            entry = self._ready.popleft()
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
            running = asyncio.get_running_loop().create_task(self._call(entry, call))
            self._calls.add(running)
            running.add_done_callback(self._call_ended)

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

    async def _call(self, entry: _Entry, call: Coroutine[Any, Any, Any] | None) -> None:
        """Call until there is an answer; nothing is lost or skipped while the other side is away."""
        backoff_s = BACKOFF_S
        try:
            while call is not None:
                try:
                    entry.outcome = await watched_steps(self._handling(), entry.record, call)
                    break
                except Unavailable as error:
                    self._warn(error)
                await asyncio.sleep(backoff_s * random.uniform(0.5, 1.0))
                backoff_s = min(BACKOFF_MAX_S, backoff_s * 2)
                call = self._call_for(entry, self._task.current_work)
        except BaseException as error:
            if self._is_over:  # cancelled by us; a CancelledError of the call's own making fails its record
                raise
            entry.error = error
        entry.ended = True

    def _warn(self, error: Unavailable) -> None:
        """Say so now and then, not for each of the calls that wait."""
        now = time.monotonic()
        if now >= self._quiet_until:
            self._quiet_until = now + WARNING_PAUSE_S
            log.warning("%s of partition %d waits, and tries again: %s", self._source[0], self._task.number, error)

    def _call_ended(self, running: asyncio.Task[None]) -> None:
        self._calls.discard(running)
        if not running.cancelled() and (error := running.exception()) is not None:
            self._task.fail(error)
        self._wake.set()

    # ---- records

    async def _handle_ended(self) -> None:
        """Handle the records at the front whose calls have ended."""
        front = []
        for entry in self._window:
            if not entry.ended:
                break
            front.append(entry)
        entries = {id(entry.record): entry for entry in front}

        def handle(record: Record, work: UnitOfWork) -> str:
            entry = entries[id(record)]
            if entry.error is not None:
                raise entry.error
            work.outcome = entry.outcome
            return self._handle_record(record, work)

        await self._task.run_records(self._source, handle, [entry.record for entry in front], self._handled)
        if self._held and len(self._window) < 2 * self._calls_max:
            self._task.let_go(self._source[1], self._held)
            self._held = 0
        if not self._window:
            self._task.handled_all(self._source)

    def _handled(self, first: int, end: int) -> int:
        """Take handled records from the front: the next one of each key may call. Returns the agent's new position."""
        done = list(islice(self._window, end - first))
        for entry in done:
            self._window.popleft()
            queue = self._by_key[entry.record.key]
            queue.popleft()
            if queue:
                self._ready.append(queue[0])
            else:
                del self._by_key[entry.record.key]
        return done[-1].next_offset
