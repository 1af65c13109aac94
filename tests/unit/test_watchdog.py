"""The watchdog gets the main thread out of handlers, raises nowhere else, and knows when to give up."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import queue
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
import uvloop

from engine.declare.envelope import Envelope
from engine.declare.errors import HandlerTimeout
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record
from engine.store.store import Store
from engine.watchdog import watchdog as watchdog_module
from engine.watchdog.stuck import StuckRecords
from engine.watchdog.watch import WATCH, Handling, watched, watched_steps
from engine.watchdog.watchdog import EXIT_STUCK, LOOKS, SIGNAL, Watchdog, watching
from streams.settings import Settings
from tests.unit.test_unit_of_work import Committed

TIMEOUT_S = 0.1
RECORD = Record(7, 1_000, b"k", b"v", ())


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Iterator[Callable[[Any], Any]]:
    """Runs a coroutine on each kind of event loop."""
    with asyncio.Runner(loop_factory=request.param) as runner:
        yield runner.run


@pytest.fixture
def marks(tmp_path: Path) -> StuckRecords:
    return StuckRecords(Settings(_env_file=None, data_dir=tmp_path), 0)


@pytest.fixture
def by(marks: StuckRecords) -> Handling:
    return Handling("agent", "topic", marks)


@pytest.fixture
def unwatched() -> Iterator[None]:
    """WATCH may be set by hand, and is as it was afterwards."""
    yield
    WATCH.by = WATCH.record = None


def loop_for_ever() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(1000)


def swallow_exceptions() -> None:
    while True:
        try:
            time.sleep(0.001)
            raise ValueError
        except Exception:
            continue


def swallow_two_interrupts() -> None:
    for _ in range(2):
        with contextlib.suppress(BaseException):
            time.sleep(1000)
    time.sleep(1000)


def wait_for_an_event() -> None:
    threading.Event().wait()


def wait_for_a_queue() -> None:
    queue.Queue[int]().get()


def receive() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.recv(1)


def spend_nearly_all_time_in_the_unit_of_work() -> None:
    work, table = new_work(), Table[str, int]("rows", int)
    while True:
        for number in range(1000):
            work.put(table, str(number), number)


HANGING = (
    loop_for_ever,
    sleep,
    swallow_exceptions,
    swallow_two_interrupts,
    wait_for_an_event,
    wait_for_a_queue,
    receive,
    spend_nearly_all_time_in_the_unit_of_work,
)


def new_work() -> UnitOfWork:
    return UnitOfWork(0, Committed(), lambda key: 0, msgspec.json.encode, Settings(_env_file=None))


@pytest.mark.parametrize("handler", HANGING)
def test_a_handler_that_hangs_is_interrupted(
    by: Handling, run: Callable[[Any], Any], handler: Callable[[], None]
) -> None:
    async def main() -> float:
        began = time.monotonic()
        with pytest.raises(HandlerTimeout, match=r"within 0\.1 s") as raised:
            watched(by, RECORD, handler)
        assert handler.__name__ in [entry.name for entry in raised.traceback]
        await asyncio.sleep(0.001)  # the loop goes on
        return time.monotonic() - began

    with watching(TIMEOUT_S):
        assert run(main()) >= TIMEOUT_S * 0.9
    assert WATCH.record is None


def test_a_step_of_a_call_that_keeps_the_loop_is_interrupted_but_not_one_that_waits(
    by: Handling, run: Callable[[Any], Any]
) -> None:
    async def call() -> str:
        await asyncio.sleep(3 * TIMEOUT_S)
        time.sleep(1000)
        return "never"

    async def main() -> None:
        began = time.monotonic()
        with pytest.raises(HandlerTimeout):
            await watched_steps(by, RECORD, call())
        assert time.monotonic() - began > 3.9 * TIMEOUT_S

    with watching(TIMEOUT_S):
        run(main())


async def test_steps_of_a_call_answer_results_errors_and_cancellations_as_await_does(by: Handling) -> None:
    async def call(result: str) -> str:
        try:
            async with asyncio.timeout(0.001):
                await asyncio.sleep(1000)
        except TimeoutError:
            result += " after a timeout"
        if "bad" in result:
            raise ValueError(result)
        return result

    assert await watched_steps(by, RECORD, call("good")) == "good after a timeout"
    with pytest.raises(ValueError, match="bad after a timeout"):
        await watched_steps(by, RECORD, call("bad"))

    async def wait() -> None:
        await watched_steps(by, RECORD, asyncio.sleep(1000))

    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert WATCH.record is None


def test_interrupting_what_changes_rows_and_outputs_leaves_nothing_half_done(by: Handling) -> None:
    table, topic = Table[str, int]("rows", int), Topic("out", "")
    work = new_work()
    work.put(table, "kept", 1)
    work.send_raw(topic, b"k", b"kept")
    work.release()

    def change() -> None:
        number = 0
        while True:
            number += 1
            work.put(table, str(number), number)
            work.send_raw(topic, b"k", b"lost")

    with watching(0.02):
        for _ in range(10):
            with pytest.raises(HandlerTimeout):
                watched(by, Record(1, 1, b"k", b"v", ()), change)
            work.rollback()
            assert work.rows == {table: {"kept": 1}}
            assert work.outputs == {("out", 0): [(b"k", b"kept", ())]}


def test_a_reaction_is_interrupted_although_the_unit_of_work_calls_it(by: Handling) -> None:
    def react(envelope: Envelope[Any], work: UnitOfWork) -> None:
        loop_for_ever()

    work = UnitOfWork(
        0, Committed(), lambda key: 0, msgspec.json.encode, Settings(_env_file=None), {type(RECORD): [react]}
    )
    message: Any = type("Message", (), {"payload": RECORD})()
    with watching(TIMEOUT_S), pytest.raises(HandlerTimeout):
        watched(by, RECORD, work.deliver, message)


def test_ordinary_records_are_left_alone_however_many_there_are(by: Handling) -> None:
    ends_at = time.monotonic() + 5 * TIMEOUT_S
    with watching(TIMEOUT_S):
        while time.monotonic() < ends_at:
            watched(by, Record(7, 1_000, b"k", b"v", ()), time.sleep, 0.0001)


def test_a_handler_that_fails_or_ends_as_the_timeout_comes_never_takes_the_engine_along(by: Handling) -> None:
    """Nothing but the handler's own end or HandlerTimeout comes out, and both only from `watched`."""
    timeout_s = 0.01
    ends = 0
    with watching(timeout_s):
        for step in range(200):
            ends_at = time.monotonic() + timeout_s * (0.9 + step / 500)

            def handler(ends_at: float = ends_at) -> None:
                while time.monotonic() < ends_at:
                    pass
                raise ValueError

            try:
                watched(by, Record(step, 1, b"k", b"v", ()), handler)
            except (ValueError, HandlerTimeout):
                ends += 1
    assert ends == 200


# ---- where nothing may be raised


def overdue(by: Handling) -> Watchdog:
    """A watchdog in whose eyes RECORD is overdue, without its thread."""
    watchdog = Watchdog(1.0)
    watchdog._seen, watchdog._looks = (by, RECORD), LOOKS
    WATCH.by, WATCH.record = by, RECORD
    return watchdog


def test_a_signal_that_comes_too_late_does_nothing(by: Handling, unwatched: None) -> None:
    watchdog = overdue(by)

    def handler() -> None:
        watchdog.on_signal(0, sys._getframe())

    WATCH.record = None  # not through `watched`: between two records
    handler()
    with pytest.raises(HandlerTimeout):
        watched(by, RECORD, handler)
    watched(by, Record(8, 1_000, b"k", b"v", ()), handler)  # the next record
    watched(Handling("agent", "topic", by.stuck), RECORD, handler)  # the same record in another turn
    watchdog._looks = 0
    watched(by, RECORD, handler)  # its turn has just begun


def test_nothing_is_raised_outside_of_a_handler_or_in_the_engines_own_code(by: Handling, unwatched: None) -> None:
    watchdog = overdue(by)
    watchdog.on_signal(0, sys._getframe())  # no boundary below
    watchdog.on_signal(0, None)

    def encode(message: Any) -> bytes:
        watchdog.on_signal(0, sys._getframe())
        return b"x"

    work = UnitOfWork(0, Committed(), lambda key: 0, encode, Settings(_env_file=None))
    watched(by, RECORD, work.send, Topic("out", ""), "k", RECORD)  # called by what changes the unit of work
    assert work.outputs == {("out", 0): [(b"k", b"x", ())]}


# ---- counting looks


class Counting(Watchdog):
    """Notes what it would do."""

    def __init__(self) -> None:
        super().__init__(1.0, lambda status: None)
        self.done: list[str] = []

    def _interrupt(self) -> None:
        self.done.append("interrupt")

    def _give_up(self) -> None:
        self.done.append("give up")

    def look_often(self, times: int) -> list[str]:
        """Look so many times; what came of it."""
        self.done = []
        for _ in range(times):
            self.look()
        return self.done


def test_it_interrupts_after_one_timeout_and_gives_up_after_two(by: Handling, unwatched: None) -> None:
    watchdog = Counting()
    assert watchdog.look_often(50) == []
    WATCH.by, WATCH.record = by, RECORD
    assert watchdog.look_often(LOOKS) == []  # the first sees it, and the time is over LOOKS looks later
    assert watchdog.look_often(LOOKS) == ["interrupt"] * LOOKS
    assert watchdog.look_often(1) == ["give up"]


@pytest.mark.parametrize("change", ["another record", "another turn", "nothing"])
def test_it_begins_to_count_anew_for_what_is_handled_next(by: Handling, unwatched: None, change: str) -> None:
    watchdog = Counting()
    WATCH.by, WATCH.record = by, RECORD
    watchdog.look_often(LOOKS)
    match change:
        case "another record":
            WATCH.record = Record(7, 1_000, b"k", b"v", ())  # equal, but not the same
        case "another turn":
            WATCH.by = Handling("agent", "topic", by.stuck)
        case _:
            WATCH.record = None
            watchdog.look()
            WATCH.record = RECORD
    assert watchdog.look_often(LOOKS) == []
    assert watchdog.look_often(1) == ["interrupt"]


def test_time_that_a_slow_disk_takes_is_not_the_records_fault(by: Handling, unwatched: None) -> None:
    watchdog = Counting()
    WATCH.by, WATCH.record = by, RECORD

    class SlowDisk:
        def get(self, key: bytes) -> None:
            watchdog.look_often(10 * LOOKS)

    slow = object.__new__(Store)
    slow._db = SlowDisk()  # type: ignore[assignment]
    slow.get(b"k")
    assert watchdog.done == ["interrupt"]
    assert watchdog.look_often(1) == ["interrupt"]


# ---- giving up


@pytest.mark.parametrize("holds_the_log", [False, True])
def test_what_cannot_be_interrupted_is_marked_and_the_process_ends(
    by: Handling,
    marks: StuckRecords,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    holds_the_log: bool,
) -> None:
    ended: list[int] = []
    watchdog = Watchdog(0.05, end=ended.append)
    monkeypatch.setattr(watchdog_module, "LAST_WORDS_S", 0.3)
    before = signal.signal(SIGNAL or 0, watchdog.on_signal)

    def stubborn() -> None:
        with contextlib.ExitStack() as held:
            for handler in logging.getLogger().handlers if holds_the_log else ():
                handler.acquire()
                held.callback(handler.release)
            while not ended:
                with contextlib.suppress(BaseException):
                    time.sleep(0.005)

    watchdog.start()
    watched(by, RECORD, stubborn)
    watchdog.stop()
    signal.signal(SIGNAL or 0, before)
    assert ended[0] == EXIT_STUCK
    assert marks
    with pytest.raises(HandlerTimeout, match=r"within 0\.1 s, and could not be interrupted") as raised:
        marks.check("agent", "topic", RECORD)
    assert "in stubborn" in raised.value.__notes__[0]
    if not holds_the_log:
        (said,) = [record for record in caplog.records if record.levelname == "CRITICAL"][:1]
        for word in ("topic@7 (key b'k') in agent", "status 75", "becomes a dead letter", "in stubborn"):
            assert word in said.getMessage()


def test_it_ends_the_process_and_says_so_when_no_mark_can_be_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, unwatched: None
) -> None:
    (tmp_path / "stuck").write_text("a file where a folder should be")
    by = Handling("agent", "topic", StuckRecords(Settings(_env_file=None, data_dir=tmp_path), 0))
    ended: list[int] = []
    watchdog = Watchdog(1.0, end=ended.append)
    watchdog._seen = by, RECORD
    watchdog._give_up()
    assert ended == [EXIT_STUCK]
    assert "could not be noted" in caplog.text


def test_the_signal_is_nobodys_again_afterwards() -> None:
    assert SIGNAL is not None
    before = signal.getsignal(SIGNAL)
    with watching(TIMEOUT_S):
        assert signal.getsignal(SIGNAL) != before
    assert signal.getsignal(SIGNAL) == before
    assert "watchdog" not in [thread.name for thread in threading.enumerate()]
