"""The timers of one partition: woken when the first falls due, handled like records in the unit of work."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile

from msgspec.structs import replace

from engine.declare.timers import TIMERS, Timer, TimerKey, encode_due, timer_topic
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.burial import Failed, bury
from engine.failures.classify import INFRASTRUCTURE_ERRORS, RetryPolicy, is_retryable
from engine.failures.dead_letters import DEAD_LETTERS, RESOLVED, TIMERS_AGENT, close_letter, letter_id
from engine.log.ports import Record
from engine.observe.about import about, told
from engine.watchdog.watch import Handling, watched
from engine.work.context import EngineContext
from engine.work.open_work import OpenWork

log = logging.getLogger(__name__)

TIMERS_PER_RUN = 500
AGENT = "timers"  # who handles them, as dead letters say


class TimerLoop:
    """Fires committed timers: what a timer's handler does and the timer's end are committed together."""

    def __init__(self, work: OpenWork, context: EngineContext) -> None:
        self._work = work
        self._context = context
        self._handle: asyncio.TimerHandle | None = None
        self._first_due_ms = 0  # no committed timer falls due before

    def committed(self, timers: Iterable[TimerKey]) -> None:
        """These timers were set or ended by the unit of work that was just committed."""
        self._first_due_ms = min(self._first_due_ms, min((key.due_ms for key in timers), default=self._first_due_ms))
        self.plan()

    def plan(self) -> None:
        """Wake up when the first committed timer falls due."""
        self.cancel()
        first = next(self._scan(), None)
        if first is not None:
            self._first_due_ms = first.due_ms
            delay_s = max(0.0, first.due_ms / 1000 - time.time())
            self._handle = self._work.life.background.later(delay_s, self._run)

    def _scan(self) -> Iterator[TimerKey]:
        """Committed timers in the order they fall due.

        Not from the beginning: RocksDB would walk over every timer that has ended there, until it compacts them away.
        """
        return (key for key, _ in self._work.partition.scan(TIMERS, start=encode_due(self._first_due_ms)))

    def cancel(self) -> None:
        """Do not wake up."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _run(self) -> None:
        self._handle = None
        work, now_ms = self._work.open(), int(time.time() * 1000)
        due = list(islice(takewhile(lambda key: key.due_ms <= now_ms, self._scan()), TIMERS_PER_RUN))
        # What is being committed right now may have ended a timer that is still in the store.
        pending = [(key, timer) for key in due if (timer := work.get(TIMERS, key)) is not None]
        for key, timer in pending:
            self._fire(key, timer, work)
        if pending:
            self._work.commit_soon()
        elif not due:
            self.plan()

    def _fire(self, key: TimerKey, timer: Timer, work: UnitOfWork) -> None:
        now_ms = max(key.due_ms, int(time.time() * 1000))
        work.now_ms = now_ms
        work.record = Record(-1, now_ms, timer.key.encode(), timer.payload, timer.headers)
        work.retry_count = timer.retry_count
        by = Handling(TIMERS_AGENT, timer_topic(timer.kind), self._work.life.stuck)
        due = Record(-1, key.due_ms, work.record.key, timer.payload, ())  # the same after a restart
        try:
            work.put(TIMERS, key, None)  # first, as its handler may set it again
            if timer.letter is None or work.get(DEAD_LETTERS, timer.letter) is not None:  # not discarded meanwhile
                watched(by, due, self._context.timer_handler(timer.kind), timer, work)
            if timer.letter is not None:
                close_letter(work, timer.letter, RESOLVED)
        except INFRASTRUCTURE_ERRORS:
            raise
        except BaseException as error:
            work.rollback()
            work.put(TIMERS, key, None)
            self._fail(timer, work, error)
        work.release()
        work.retry_count = 0

    def _fail(self, timer: Timer, work: UnitOfWork, error: BaseException) -> None:
        """Set the timer anew, or make it a dead letter; nothing waits behind a timer."""
        topic = timer_topic(timer.kind)
        policy = RetryPolicy.of(self._context.settings, topic)
        said = about(
            topic=topic,
            partition=work.partition,
            agent=TIMERS_AGENT,
            aggregate_id=timer.key,
            retry_count=timer.retry_count,
            error_type=type(error).__name__,
            trace_id=work.trace_id,
        )
        if is_retryable(error) and timer.retry_count < policy.retries:
            later = TimerKey(work.now_ms + policy.pause_ms(timer.retry_count), timer.kind, timer.key)
            work.put(TIMERS, later, replace(timer, retry_count=timer.retry_count + 1))
            self._context.metrics.retries[TIMERS_AGENT] += 1
            log.warning("timer %s failed and is tried again: %s", timer.kind, told(error), extra=said)
            return
        record = Record(timer.due_ms, work.now_ms, timer.key.encode(), timer.payload, timer.headers)
        failed = Failed(TIMERS_AGENT, topic, record, error, timer.retry_count, timer.letter, None)
        letter = letter_id(work.partition, bury(work, failed))
        said["about"]["dead_letter_id"] = letter
        log.warning("timer %s is dead letter %s: %s", timer.kind, letter, told(error), extra=said)
        self._context.metrics.dead_letters += 1
