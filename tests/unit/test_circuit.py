"""A circuit opens when most calls fail, lets one probe through after each pause, and closes when one is answered."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.calls.circuit import OUTCOMES_MAX, OUTCOMES_MIN, Circuit, CircuitState, Permit
from engine.declare.errors import Unavailable

AWAY = Unavailable("the gateway is\n away")
NINE = datetime(2026, 3, 1, 9, tzinfo=UTC)


class HandTimers:
    """Stands in for the loop's timers and the clock: the test says when a pause is over."""

    def __init__(self) -> None:
        self.pauses: list[float] = []
        self.now = NINE.timestamp()
        self._due: Callable[[], None] | None = None

    def call_later(self, seconds: float, function: Callable[[], None]) -> None:
        """Note a pause; there is only one at a time."""
        assert self._due is None, "two pauses at once"
        self.pauses.append(seconds)
        self._due = function

    def clock(self) -> float:
        """Seconds since 1970."""
        return self.now

    @property
    def is_pausing(self) -> bool:
        """Whether a pause is under way."""
        return self._due is not None

    def end_pause(self) -> None:
        """Let the pause be over."""
        assert self._due is not None, "there is no pause"
        due, self._due = self._due, None
        self.now += self.pauses[-1]
        due()


@pytest.fixture
def timers() -> HandTimers:
    return HandTimers()


@pytest.fixture
def circuit(timers: HandTimers) -> Circuit:
    return Circuit("ask", 1.0, 30.0, timers.call_later, timers.clock)


def fail(circuit: Circuit, times: int = 1) -> None:
    """Make calls that find nobody."""
    for _ in range(times):
        assert circuit.allows()
        permit = circuit.begin()
        circuit.failed(permit, AWAY)
        circuit.end(permit)


def succeed(circuit: Circuit, times: int = 1) -> None:
    """Make calls that are answered."""
    for _ in range(times):
        assert circuit.allows()
        permit = circuit.begin()
        circuit.succeeded(permit)
        circuit.end(permit)


def test_a_few_failures_leave_it_closed(circuit: Circuit) -> None:
    fail(circuit, OUTCOMES_MIN - 1)
    assert (circuit.state, circuit.pause()) == (CircuitState.CLOSED, None)


def test_it_opens_when_all_of_the_first_calls_fail(circuit: Circuit) -> None:
    fail(circuit, OUTCOMES_MIN)
    assert circuit.state is CircuitState.OPEN
    assert not circuit.allows()


def test_it_opens_when_half_of_the_last_calls_fail_however_many_went_well_before(circuit: Circuit) -> None:
    succeed(circuit, 1000)
    fail(circuit, OUTCOMES_MAX // 2 - 1)
    assert circuit.allows()
    fail(circuit)
    assert not circuit.allows()


def test_failures_among_more_successes_leave_it_closed(circuit: Circuit) -> None:
    for _ in range(50):
        succeed(circuit, 2)
        fail(circuit)
    assert circuit.state is CircuitState.CLOSED


def test_after_the_pause_one_call_is_made_and_no_other_until_it_ends(circuit: Circuit, timers: HandTimers) -> None:
    fail(circuit, OUTCOMES_MIN)
    timers.end_pause()
    assert circuit.allows()
    assert circuit.begin().is_probe
    assert not circuit.allows()


def test_an_answered_probe_closes_it_and_earlier_failures_are_forgotten(circuit: Circuit, timers: HandTimers) -> None:
    fail(circuit, OUTCOMES_MIN)
    timers.end_pause()
    succeed(circuit)
    fail(circuit, OUTCOMES_MIN - 1)
    assert circuit.state is CircuitState.CLOSED


def test_each_failed_probe_doubles_the_pause_up_to_the_longest(circuit: Circuit, timers: HandTimers) -> None:
    fail(circuit, OUTCOMES_MIN)
    for _ in range(2000):
        timers.end_pause()
        fail(circuit)
    full = [1.0, 2.0, 4.0, 8.0, 16.0, *[30.0] * 1996]
    assert all(most / 2 <= pause <= most for pause, most in zip(timers.pauses, full, strict=True))
    timers.end_pause()
    succeed(circuit)
    fail(circuit, OUTCOMES_MIN)
    assert timers.pauses[-1] <= 1.0


def test_the_first_pause_is_no_longer_than_the_longest(timers: HandTimers) -> None:
    circuit = Circuit("ask", 60.0, 5.0, timers.call_later, timers.clock)
    fail(circuit, OUTCOMES_MIN)
    assert timers.pauses[0] <= 5.0


def test_calls_that_were_under_way_when_it_opened_change_nothing(circuit: Circuit, timers: HandTimers) -> None:
    late = [circuit.begin() for _ in range(4)]
    fail(circuit, OUTCOMES_MIN)
    circuit.failed(late[0], AWAY)
    circuit.succeeded(late[1])
    assert timers.is_pausing
    timers.end_pause()
    probe = circuit.begin()
    circuit.succeeded(late[2])
    circuit.end(late[2])
    assert not circuit.allows()  # the probe is still under way
    circuit.succeeded(probe)
    for _ in range(OUTCOMES_MIN):
        circuit.failed(late[3], AWAY)
    assert circuit.state is CircuitState.CLOSED


def test_a_probe_that_comes_to_nothing_leaves_its_turn_to_another(circuit: Circuit, timers: HandTimers) -> None:
    woken = []
    circuit.join(lambda: woken.append(circuit.state))
    fail(circuit, OUTCOMES_MIN)
    timers.end_pause()
    circuit.end(circuit.begin())
    assert (circuit.state, circuit.allows()) == (CircuitState.HALF_OPEN, True)
    assert woken == [CircuitState.HALF_OPEN, CircuitState.HALF_OPEN]


def test_all_who_wait_are_woken_for_the_probe_and_when_it_closes(circuit: Circuit, timers: HandTimers) -> None:
    woken: list[str] = []
    wakers = [lambda: woken.append("a"), lambda: woken.append("b"), lambda: woken.append("c")]
    for wake in wakers:
        circuit.join(wake)
    circuit.leave(wakers[2])
    circuit.leave(wakers[2])
    fail(circuit, OUTCOMES_MIN)
    assert woken == []
    timers.end_pause()
    assert woken == ["a", "b"]
    succeed(circuit)
    assert woken == ["a", "b"] * 2


def test_a_pause_says_since_when_why_and_until_when(circuit: Circuit, timers: HandTimers) -> None:
    fail(circuit, OUTCOMES_MIN)
    pause = circuit.pause()
    assert pause is not None
    assert (pause.agent, pause.state, pause.since) == ("ask", CircuitState.OPEN, NINE)
    assert pause.reason == "the gateway is away"
    assert pause.next_probe_at is not None
    assert abs(pause.next_probe_at - (NINE + timedelta(seconds=timers.pauses[0]))) < timedelta(milliseconds=1)
    timers.end_pause()
    pause = circuit.pause()
    assert pause is not None
    assert (pause.state, pause.next_probe_at) == (CircuitState.HALF_OPEN, None)
    permit = circuit.begin()
    circuit.failed(permit, ZeroDivisionError())
    pause = circuit.pause()
    assert pause is not None
    assert (pause.since, pause.reason) == (NINE, "ZeroDivisionError")  # since it opened, with the last error


def test_an_error_without_words_of_its_own_is_named(circuit: Circuit) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    for _ in range(OUTCOMES_MIN):
        circuit.failed(circuit.begin(), Mute())
    pause = circuit.pause()
    assert pause is not None
    assert pause.reason == "Mute, whose text cannot be had"


def test_the_log_says_once_that_it_opened_and_once_that_it_closed(
    circuit: Circuit, timers: HandTimers, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        fail(circuit, OUTCOMES_MIN)
        for _ in range(5):
            timers.end_pause()
            fail(circuit)
        timers.end_pause()
        succeed(circuit)
    opened, closed = caplog.records
    assert opened.levelno == logging.WARNING
    assert opened.getMessage().startswith("calls of ask are paused, and tried again in ")
    assert opened.getMessage().endswith(": the gateway is away")
    assert closed.levelno == logging.INFO
    assert closed.getMessage() == f"calls of ask go on after a pause of {sum(timers.pauses):.1f} s"


def test_calls_are_counted_by_outcome(circuit: Circuit) -> None:
    succeed(circuit, 7)
    fail(circuit, 3)
    assert (circuit.answered, circuit.failures) == (7, 3)


@given(st.lists(st.tuples(st.sampled_from(("begin", "fail", "succeed", "end", "pause over")), st.integers(0, 99))))
def test_whatever_happens_only_one_probe_runs_and_calls_can_go_on_in_the_end(steps: list[tuple[str, int]]) -> None:
    timers = HandTimers()
    circuit = Circuit("ask", 1.0, 30.0, timers.call_later, timers.clock)
    running: list[Permit] = []

    def end(index: int, outcome: str) -> None:
        permit = running.pop(index % len(running))
        if outcome == "fail":
            circuit.failed(permit, AWAY)
        elif outcome == "succeed":
            circuit.succeeded(permit)
        circuit.end(permit)

    for step, index in steps:
        if step == "begin" and circuit.allows():
            running.append(circuit.begin())
        elif step == "pause over" and timers.is_pausing:
            timers.end_pause()
        elif step in ("fail", "succeed", "end") and running:
            end(index, step)
        assert timers.is_pausing == (circuit.state is CircuitState.OPEN)
        assert sum(permit.is_probe for permit in running) == (
            circuit.state is not CircuitState.CLOSED and not (circuit.allows() or circuit.state is CircuitState.OPEN)
        )
    while running:
        end(0, "end")
    if timers.is_pausing:
        timers.end_pause()
    assert circuit.allows()
