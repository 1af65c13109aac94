"""The machine that runs sagas: what comes next, what is undone when something fails, and when to give up waiting.

It knows no step and no event: those are in the definition. Everything here is pure: a saga is a row, and time comes
from the records.
"""

from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Final, NamedTuple, Protocol

from msgspec.structs import replace

from domain.orders import Order
from domain.sagas.definition import DEFINITIONS, NEWEST, Answer, CommandMaker, Step, step_of
from domain.sagas.state import COMPENSATED, COMPENSATING, COMPENSATION_FAILED, COMPLETED, RUNNING, Saga, StepRun
from engine import Envelope, Message, later
from streams.events.orders import OrderPlaced, SagaStyle

TIMED_OUT: Final = "timed_out"
NO_ANSWER: Final = "no_answer"
_UNDO: Final = "undo"


class PolicySettings(Protocol):
    """The settings that a policy is made of."""

    @property
    def saga_step_timeout(self) -> float:
        """Seconds in which a step is answered."""

    @property
    def saga_retries(self) -> int:
        """Retries of a compensation that failed."""

    @property
    def saga_retry_backoff(self) -> float:
        """Seconds before the first of them."""


class Policy(NamedTuple):
    """How long a saga waits and how often it tries, in milliseconds of production time."""

    step_timeout_ms: int
    retries: int
    backoff_ms: int

    @classmethod
    def of(cls, settings: PolicySettings) -> "Policy":
        """What the settings say."""
        return cls(
            step_timeout_ms=int(settings.saga_step_timeout * 1000),
            retries=settings.saga_retries,
            backoff_ms=int(settings.saga_retry_backoff * 1000),
        )


class Command(NamedTuple):
    """Something to ask: of a service, or of the order itself where it is `local`. `step` makes the command's id."""

    local: bool
    key: str
    payload: Message
    step: str


def begin(placed: Envelope[OrderPlaced], style: SagaStyle, now_ms: int, version: int = NEWEST) -> Saga:
    """The saga of an order that has just been placed."""
    payload = placed.payload
    lines = range(1, len(payload.items) + 1)
    steps = tuple(
        StepRun(step.name, line)
        for step in DEFINITIONS[version]
        for line in (lines if step.each_line else (0,))
    )  # fmt: skip
    saga = Saga(
        order_id=payload.order_id,
        style=style,
        version=version,
        state=RUNNING,
        reason=None,
        placed_id=placed.event_id,
        correlation_id=placed.metadata.correlation_id,
        user_id=placed.metadata.user_id,
        placed_at=placed.timestamp,
        started_ms=now_ms,
        ended_ms=None,
        timer_ms=None,
        steps=steps,
    )
    return apply(saga, payload, now_ms)


def apply(saga: Saga, event: Message, now_ms: int) -> Saga:
    """The saga after an event of its order; one that it does not wait for (any more) changes nothing."""
    for name, answer in _answers(saga.version).get(type(event), ()):
        for index, run in enumerate(saga.steps):
            is_of_line = run.line == (getattr(event, "line", 0) if run.line else 0)
            if run.name == name and is_of_line and answer.fits(run, event):
                steps = _with(saga.steps, index, _answered(run, answer, event, now_ms))
                return replace(saga, reason=saga.reason or answer.reason(event), steps=steps)
    return saga


def advance(saga: Saga, order: Order, now_ms: int, policy: Policy) -> tuple[Saga, list[Command]]:
    """Give up what was not answered in time, and ask for what comes next."""
    saga = _expire(saga, now_ms, policy)
    if not _is_failing(saga):
        return _forward(saga, order, now_ms)
    return _backward(saga, order, now_ms, policy)


def resume(saga: Saga) -> Saga:
    """The saga with its failed compensations to be tried anew."""
    if saga.state != COMPENSATION_FAILED:
        return saga
    steps = tuple(
        replace(run, state="done", undo_attempts=0) if run.state == "undo_failed" else run for run in saga.steps
    )
    return replace(saga, state=COMPENSATING, steps=steps)


def wakes_at(saga: Saga, policy: Policy) -> int | None:
    """When time alone changes something: a deadline passes or a compensation is to be tried again; None: never."""
    last = _last_to_undo(saga)
    waiting = [run for index, run in enumerate(saga.steps) if run.state == "asked" or index == last]
    return min((due for run in waiting if (due := _due(run, policy)) is not None), default=None)


def stuck_at(saga: Saga) -> StepRun | None:
    """The step that is undone next or cannot be undone; None when there is none."""
    index = _last_to_undo(saga)
    return None if index is None else saga.steps[index]


def backoff_ms(policy: Policy, attempts: int) -> int:
    """The pause after the given number of refusals: it doubles each time."""
    return policy.backoff_ms << (attempts - 1)


def business_time(saga: Saga, now_ms: int) -> datetime:
    """Business time of what the saga asks for: as long after the order as it took, also for orders of the past."""
    return later(saga.placed_at, now_ms - saga.started_ms)


# ---- what an event means


@cache
def _answers(version: int) -> Mapping[type[Message], Sequence[tuple[str, Answer]]]:
    """The steps of a definition that an event may answer, and how."""
    found: dict[type[Message], list[tuple[str, Answer]]] = {}
    for step in DEFINITIONS[version]:
        for answer in step.answers:
            found.setdefault(answer.event, []).append((step.name, answer))
    return found


def _answered(run: StepRun, answer: Answer, event: Message, now_ms: int) -> StepRun:
    """The step after an answer that it waits for."""
    error = getattr(event, "reason", None)
    match answer.outcome:
        case "done":
            return replace(run, state="done", answered_ms=now_ms, error=None)
        case "failed":
            return replace(run, state="failed", answered_ms=now_ms, error=error)
        case "undone":
            return replace(run, state="undone", undo_answered_ms=now_ms, undo_error=None)
        case "undo_failed":
            return _not_undone(run, error, now_ms)


def _not_undone(run: StepRun, error: str | None, now_ms: int) -> StepRun:
    """The step after a compensation that was refused or not answered."""
    attempts = run.undo_attempts + 1
    return replace(run, state="undo_failed", undo_answered_ms=now_ms, undo_attempts=attempts, undo_error=error)


# ---- what comes next


def _is_failing(saga: Saga) -> bool:
    if saga.state not in (RUNNING, COMPLETED):
        return True
    return any(run.state in ("failed", "timed_out", "undone") for run in saga.steps)


def _forward(saga: Saga, order: Order, now_ms: int) -> tuple[Saga, list[Command]]:
    """Ask for all lines of the first step that is not done; the next step waits for all of them."""
    for step in DEFINITIONS[saga.version]:
        runs = [run for run in saga.steps if run.name == step.name]
        if all(run.state == "done" for run in runs):
            continue
        pending = [run for run in runs if run.state == "pending"]
        if not pending:
            return saga, []  # answers are still to come
        asked = {run.line: replace(run, state="asked", asked_ms=now_ms) for run in pending}
        steps = tuple(asked.get(run.line, run) if run.name == step.name else run for run in saga.steps)
        saga = replace(saga, steps=steps)
        return saga, [_command(step, step.action, saga, order, run.line, step.name) for run in pending]
    return replace(saga, state=COMPLETED, ended_ms=saga.ended_ms or now_ms), []


def _backward(saga: Saga, order: Order, now_ms: int, policy: Policy) -> tuple[Saga, list[Command]]:
    """Undo what is done, last in first out, the next only when the one before is undone."""
    if any(run.state == "asked" for run in saga.steps):
        return replace(saga, state=COMPENSATING, ended_ms=None), []  # it may be done by now: its answer tells
    index = _last_to_undo(saga)
    if index is None:
        return replace(saga, state=COMPENSATED, ended_ms=saga.ended_ms or now_ms), []
    run = saga.steps[index]
    if run.undo_attempts > policy.retries:
        return replace(saga, state=COMPENSATION_FAILED, ended_ms=None), []
    saga = replace(saga, state=COMPENSATING, ended_ms=None)
    if run.state == "undoing" or (run.state == "undo_failed" and now_ms < (_due(run, policy) or 0)):
        return saga, []
    saga = replace(saga, steps=_with(saga.steps, index, replace(run, state="undoing", undo_asked_ms=now_ms)))
    step = step_of(saga, run)
    name = f"{step.name}:{_UNDO}:{run.undo_attempts}:{now_ms}"
    return saga, [_command(step, step.compensation, saga, order, run.line, name)]


def _last_to_undo(saga: Saga) -> int | None:
    """Index of the last step that is done and can be undone; None when there is none, or the saga goes forward."""
    if not _is_failing(saga):
        return None
    for index in range(len(saga.steps) - 1, -1, -1):
        run = saga.steps[index]
        if run.state in ("done", "undoing", "undo_failed") and step_of(saga, run).compensation is not None:
            return index
    return None


def command_step(name: str, line: int) -> str:
    """What makes the id of a command: the name of what is asked, and the line where it is about one."""
    return f"{name}:{line}" if line else name


def undos_of(saga: Saga, run: StepRun) -> Iterator[tuple[str, int]]:
    """What makes the ids of the commands that were to undo a step, oldest first, and when each was asked."""
    for asked in saga.causes:
        name, *rest = asked.split(":")
        if name == run.name and rest[:1] == [_UNDO] and (int(rest[3]) if len(rest) > 3 else 0) == run.line:
            yield asked, int(rest[2])


def _expire(saga: Saga, now_ms: int, policy: Policy) -> Saga:
    """Give up waiting for answers whose deadline has passed."""
    for index, run in enumerate(saga.steps):
        due = _due(run, policy)
        if due is None or now_ms < due:
            continue
        if run.state == "asked":
            expired = replace(run, state="timed_out", timed_out_ms=now_ms, error=TIMED_OUT)
            saga = replace(saga, reason=saga.reason or TIMED_OUT, steps=_with(saga.steps, index, expired))
        elif run.state == "undoing":
            saga = replace(saga, steps=_with(saga.steps, index, _not_undone(run, NO_ANSWER, now_ms)))
    return saga


def _due(run: StepRun, policy: Policy) -> int | None:
    """When waiting for this step ends: a deadline, or the pause before a compensation is tried again."""
    if run.state == "asked" and run.asked_ms is not None:
        return run.asked_ms + policy.step_timeout_ms
    if run.state == "undoing" and run.undo_asked_ms is not None:
        return run.undo_asked_ms + policy.step_timeout_ms
    if run.state == "undo_failed" and run.undo_answered_ms is not None and run.undo_attempts <= policy.retries:
        return run.undo_answered_ms + backoff_ms(policy, run.undo_attempts)
    return None


def _command(step: Step, make: CommandMaker | None, saga: Saga, order: Order, line: int, name: str) -> Command:
    assert make is not None, "the saga's own beginning is not asked for"
    payload = make(order, line, saga)
    field = payload.aggregate_id_field
    assert field is not None, "a command names its aggregate"
    return Command(step.local, getattr(payload, field), payload, command_step(name, line))


def _with(steps: tuple[StepRun, ...], index: int, run: StepRun) -> tuple[StepRun, ...]:
    return (*steps[:index], run, *steps[index + 1 :])
