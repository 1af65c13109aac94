"""Circuit breaker: while most calls to something outside fail, none is made, but for a probe now and then.

A circuit belongs to an agent and is shared by all partitions of the worker, because what they call is the same.

    closed     calls are made; opens when at least half of the last ones failed
    open       no call is made until a pause is over; each pause is twice as long as the one before
    half open  one call at a time is made, the probe: its success closes the circuit, its failure opens it again
"""

from __future__ import annotations

import logging
import random
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from enum import Enum
from typing import NamedTuple

import msgspec

from engine.failures.classify import text_of
from engine.observe.about import about, told

log = logging.getLogger(__name__)

OUTCOMES_MAX = 20
OUTCOMES_MIN = 5
REASON_LENGTH_MAX = 500


class CircuitState(Enum):
    """Whether calls are made."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


class Permit(NamedTuple):
    """Leave to make one call; `period` tells apart what was called before the circuit last opened or closed."""

    period: int
    is_probe: bool


class Pause(msgspec.Struct, frozen=True):
    """Calls of `agent` are paused; `reason` is the last error. `next_probe_at` is None once a probe may be made."""

    agent: str
    state: CircuitState
    since: datetime
    reason: str
    next_probe_at: datetime | None


class Circuit:
    """The circuit of one agent.

    A pause takes `pause_s` at first and `pause_max_s` at most, less up to half of it at random, so that workers do not
    probe in step. `call_later(seconds, function)` is the loop's; `clock` gives seconds since 1970.
    """

    def __init__(
        self,
        agent: str,
        pause_s: float,
        pause_max_s: float,
        call_later: Callable[[float, Callable[[], None]], object],
        clock: Callable[[], float],
    ) -> None:
        self.agent = agent
        self.state = CircuitState.CLOSED
        self.answered = 0  # calls since the start of the worker
        self.failures = 0
        self._pause_first_s = min(pause_s, pause_max_s)
        self._pause_max_s = pause_max_s
        self._pause_s = self._pause_first_s
        self._call_later = call_later
        self._clock = clock
        self._recent: deque[bool] = deque(maxlen=OUTCOMES_MAX)  # whether a call failed
        self._period = 0
        self._is_probing = False
        self._since = 0.0
        self._next_probe_at = 0.0
        self._reason = ""
        self._wakers: list[Callable[[], None]] = []

    # ---- those who call

    def join(self, wake: Callable[[], None]) -> None:
        """Have `wake` called whenever calls may be made that might not be made before."""
        self._wakers.append(wake)

    def leave(self, wake: Callable[[], None]) -> None:
        """End what `join` began; may be repeated."""
        if wake in self._wakers:
            self._wakers.remove(wake)

    def allows(self) -> bool:
        """Whether a call may be made now."""
        return self.state is CircuitState.CLOSED or (self.state is CircuitState.HALF_OPEN and not self._is_probing)

    def begin(self) -> Permit:
        """A call that `allows` lets through begins; `end` ends it, and before that one of the two outcomes, if any."""
        self._is_probing = self.state is CircuitState.HALF_OPEN
        return Permit(self._period, self._is_probing)

    def succeeded(self, permit: Permit) -> None:
        """There was an answer, whatever it says."""
        self.answered += 1
        if permit.period != self._period:
            return
        self._recent.append(False)
        if permit.is_probe:
            self._close()

    def failed(self, permit: Permit, error: BaseException) -> None:
        """There was none."""
        self.failures += 1
        if permit.period != self._period:
            return
        self._recent.append(True)
        if permit.is_probe or (len(self._recent) >= OUTCOMES_MIN and 2 * sum(self._recent) >= len(self._recent)):
            self._open(error)

    def end(self, permit: Permit) -> None:
        """The call is over; a probe that came to no outcome (its partition was lost) leaves its turn to another."""
        if permit.is_probe and permit.period == self._period:
            self._is_probing = False
            self._wake_all()

    # ---- those who look

    def pause(self) -> Pause | None:
        """What there is to know while calls are paused, None while they are not."""
        if self.state is CircuitState.CLOSED:
            return None
        next_probe_at = _time(self._next_probe_at) if self.state is CircuitState.OPEN else None
        return Pause(self.agent, self.state, _time(self._since), self._reason, next_probe_at)

    # ---- transitions

    def _open(self, error: BaseException) -> None:
        pause_s = self._pause_s * random.uniform(0.5, 1.0)
        now = self._clock()
        self._reason = _reason(error)
        if self.state is CircuitState.CLOSED:
            self._since = now
            log.warning(
                "calls of %s are paused, and tried again in %.1f s, later every %.0f s: %s",
                self.agent,
                pause_s,
                self._pause_max_s,
                " ".join(told(error).split())[:REASON_LENGTH_MAX],
                extra=about(agent=self.agent),
            )
        self._enter(CircuitState.OPEN)
        self._pause_s = min(self._pause_max_s, 2 * self._pause_s)
        self._next_probe_at = now + pause_s
        self._call_later(pause_s, self._let_probe)

    def _let_probe(self) -> None:
        self._enter(CircuitState.HALF_OPEN)
        self._wake_all()

    def _close(self) -> None:
        log.info(
            "calls of %s go on after a pause of %.1f s",
            self.agent,
            self._clock() - self._since,
            extra=about(agent=self.agent),
        )
        self._pause_s = self._pause_first_s
        self._enter(CircuitState.CLOSED)
        self._wake_all()

    def _enter(self, state: CircuitState) -> None:
        """Outcomes of calls that are still under way say nothing about the state that begins now."""
        self.state = state
        self._period += 1
        self._is_probing = False
        self._recent.clear()

    def _wake_all(self) -> None:
        for wake in tuple(self._wakers):
            wake()


def _time(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)


def _reason(error: BaseException) -> str:
    """The error's own words in one line, or else its name."""
    words = " ".join(text_of(error).split())
    return words[:REASON_LENGTH_MAX] or type(error).__name__
