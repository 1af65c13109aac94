"""The watchdog: a thread that gets the main thread out of a handler that does not return.

It looks at WATCH (watch.py) ten times per `handler_timeout`. A record that is still the same after that many looks
is interrupted: a signal to the main thread, whose Python-level handler raises HandlerTimeout between two bytecodes of
the record's handler, or out of a system call (time.sleep, a socket). It raises nowhere else, see `_may_raise`. What has
not come back at the second timeout, however often it was interrupted, is beyond that: the watchdog leaves a mark
(stuck.py), says where the main thread is, and ends the process.

It counts its own looks, not seconds, so the time for which the whole process stood still does not count. Nor does C
code that never releases the interpreter's lock: it keeps the watchdog from looking, and nothing here helps against it.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final

from engine.declare import unit_of_work
from engine.declare.errors import HandlerTimeout
from engine.log.ports import Record
from engine.observe.about import about_record
from engine.store import cache, rows, store
from engine.watchdog.watch import BOUNDARIES, WATCH, Handling

log = logging.getLogger(__name__)

EXIT_STUCK: Final = 75  # EX_TEMPFAIL of sysexits.h: start it again
LOOKS: Final = 10  # per timeout
SIGNAL: Final[signal.Signals | None] = getattr(signal, "SIGALRM", None)  # None on Windows: there is no interrupting
ATTEMPTS: Final = 20  # signals per look, as long as they find the main thread where nothing may be raised
ATTEMPT_PAUSE_S: Final = 0.001
LAST_WORDS_S: Final = 2.0

_ENGINE = __name__.partition(".")[0] + "."
_ATOMIC = frozenset(module.__name__ for module in (cache, rows, store, unit_of_work))
_HANDS_ON = unit_of_work.UnitOfWork.deliver.__code__


class Watchdog:
    """Watches the handlers of this process. `timeout_s` is seconds; `end` ends the process with an exit status."""

    def __init__(self, timeout_s: float, end: Callable[[int], Any] = os._exit) -> None:
        self._timeout_s = timeout_s
        self._end = end
        self._main = threading.main_thread()
        self._seen: tuple[Handling | None, Record | None] = None, None
        self._looks = 0
        self._has_raised = False
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more; returns when no further signal comes."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._timeout_s / LOOKS):
            self.look()

    def look(self) -> None:
        """Count how often the same record was seen, and do what is due."""
        seen = WATCH.by, WATCH.record
        if seen[1] is None or not self._is_seen(*seen):
            self._looks = 0  # first: a late signal in between must not find the next record overdue
            self._seen = seen
            return
        if self._looks >= LOOKS and self._waits_for_the_store():
            return
        self._looks += 1
        if self._looks >= 2 * LOOKS:
            self._give_up()
        elif self._looks >= LOOKS:
            self._interrupt()

    def _is_seen(self, by: Handling | None, record: Record | None) -> bool:
        return by is self._seen[0] and record is self._seen[1]

    # ---- interrupting

    def _interrupt(self) -> None:
        """Send signals until one has raised, the handler has returned, or it is time for the next look."""
        if SIGNAL is None or self._main.ident is None:
            return
        self._has_raised = False
        for _ in range(ATTEMPTS):
            signal.pthread_kill(self._main.ident, SIGNAL)
            if self._stopped.wait(ATTEMPT_PAUSE_S) or self._has_raised or not self._is_seen(WATCH.by, WATCH.record):
                return

    def on_signal(self, _: int, frame: FrameType | None) -> None:
        """In the main thread: raise HandlerTimeout, if the overdue handler is what was interrupted."""
        if self._is_seen(WATCH.by, WATCH.record) and self._looks >= LOOKS and _may_raise(frame):
            self._has_raised = True
            raise HandlerTimeout(f"the handler did not return within {self._timeout_s:g} s and was interrupted")

    # ---- what cannot be interrupted

    def _waits_for_the_store(self) -> bool:
        """Whether the main thread reads from a disk that may be slow: the record is not to blame."""
        frame = sys._current_frames().get(self._main.ident or 0)
        return any(found.f_globals.get("__name__") == store.__name__ for found in _frames(frame))

    def _give_up(self) -> None:
        """Leave a mark, say what happened, and end the process."""
        by, record = self._seen
        assert by is not None
        assert record is not None
        stack = "".join(traceback.format_stack(sys._current_frames().get(self._main.ident or 0)))
        what = f"the handler did not return within {2 * self._timeout_s:g} s, and could not be interrupted"
        last_words = threading.Thread(target=_last_words, args=(by, record, what, stack), daemon=True)
        last_words.start()
        last_words.join(LAST_WORDS_S)  # whoever is stuck may hold what is needed for them, the log's lock for example
        self._end(EXIT_STUCK)


def _last_words(by: Handling, record: Record, what: str, stack: str) -> None:
    where = f"{by.topic}@{record.offset} (key {record.key!r}) in {by.agent}"
    kept = "When the worker is started again, the record becomes a dead letter."
    try:
        by.stuck.add(by.agent, by.topic, record, what, stack)
    except OSError as error:
        kept = f"That could not be noted ({error}): the worker will get stuck again until the disk can be written."
    extra = about_record(by.topic, by.stuck.number, record, agent=by.agent) | {"has_lines": True}
    log.critical("%s: %s. The worker ends with status %d. %s\n%s", where, what, EXIT_STUCK, kept, stack, extra=extra)


def _frames(frame: FrameType | None) -> Iterator[FrameType]:
    """The frame and those it was called from."""
    while frame is not None:
        yield frame
        frame = frame.f_back


def _may_raise(frame: FrameType | None) -> bool:
    """Whether an exception at `frame` comes up in a handler, and leaves nothing of ours half done.

    The innermost frame must not be the engine's own, nor any up to the boundary one of those that change the unit of
    work or the cache: `rollback` relies on them. `deliver` only calls other handlers.
    """
    if frame is None or str(frame.f_globals.get("__name__")).startswith(_ENGINE):
        return False
    for found in _frames(frame):
        if found.f_code in BOUNDARIES:
            return True
        if found.f_globals.get("__name__") in _ATOMIC and found.f_code is not _HANDS_ON:
            return False
    return False


@contextmanager
def watching(timeout_s: float) -> Iterator[Watchdog]:
    """Watch the handlers of this process while the block lasts; to be called in the main thread."""
    watchdog = Watchdog(timeout_s)
    before = signal.signal(SIGNAL, watchdog.on_signal) if SIGNAL is not None else None
    watchdog.start()
    try:
        yield watchdog
    finally:
        watchdog.stop()
        if SIGNAL is not None:
            signal.signal(SIGNAL, before)
