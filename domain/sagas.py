"""The saga of an order: what comes next, what is undone when something fails, and when to give up waiting.

A saga's definition is data: steps, each with its action and its compensation, and the events that answer them. A new
step is one more entry, in a new version of the definition; running sagas keep the version they began with. Everything
here is pure: a saga is a row, and time comes from the records.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any, Final, Literal, NamedTuple

from msgspec.structs import replace

from engine.declare.envelope import Envelope, Message
from engine.declare.times import later
from engine.declare.topic import Topic
from streams.events.inventory import (
    ReleaseStock,
    ReserveStock,
    StockReleased,
    StockReleaseFailed,
    StockReservationFailed,
    StockReserved,
)
from streams.events.orders import (
    CancelOrder,
    ConfirmOrder,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OrderRejected,
    SagaStyle,
)
from streams.events.payments import (
    ChargePayment,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    PaymentRefundFailed,
    RefundPayment,
)
from streams.settings import Settings
from streams.topics import INVENTORY_COMMANDS, PAYMENT_COMMANDS
from tables.orders import Order
from tables.sagas import COMPENSATED, COMPENSATING, COMPENSATION_FAILED, COMPLETED, RUNNING, Saga, StepRun

CommandMaker = Callable[[Order, int, Saga], Message]
Answer = Literal["done", "failed", "undone", "undo_failed"]

TIMED_OUT: Final = "timed_out"
NO_ANSWER: Final = "no_answer"
_UNDO: Final = "undo"


@dataclass(frozen=True)
class Step:
    """One step of a definition.

    `action` and `compensation` make the command for a line of the order (0 for all of it); None where there is nothing
    to ask. `topic` is where both go, None for what the order itself decides, at once. The other fields are the events
    that answer them.
    """

    name: str
    topic: Topic | None
    each_line: bool
    action: CommandMaker | None
    done: type[Message]
    failed: type[Message] | None
    compensation: CommandMaker | None
    undone: tuple[type[Message], ...]
    undo_failed: type[Message] | None


def _line(order: Order, line: int) -> Any:
    return order.items[line - 1]


def _charge(order: Order, line: int, saga: Saga) -> Message:
    assert order.customer_id is not None, "a placed order has a customer"
    assert order.total is not None, "a placed order has a total"
    return ChargePayment(order.order_id, order.customer_id, order.total)


PLACE: Final = Step(
    name="place",
    topic=None,
    each_line=False,
    action=None,
    done=OrderPlaced,
    failed=None,
    compensation=lambda order, line, saga: CancelOrder(order.order_id, saga.reason),
    undone=(OrderCancelled,),
    undo_failed=OrderRejected,
)
RESERVE: Final = Step(
    name="reserve",
    topic=INVENTORY_COMMANDS,
    each_line=True,
    action=lambda order, line, saga: ReserveStock(
        _line(order, line).product_id, order.order_id, _line(order, line).quantity, line
    ),
    done=StockReserved,
    failed=StockReservationFailed,
    compensation=lambda order, line, saga: ReleaseStock(_line(order, line).product_id, order.order_id, line),
    undone=(StockReleased,),
    undo_failed=StockReleaseFailed,
)
CHARGE: Final = Step(
    name="charge",
    topic=PAYMENT_COMMANDS,
    each_line=False,
    action=_charge,
    done=PaymentReceived,
    failed=PaymentFailed,
    compensation=lambda order, line, saga: RefundPayment(order.order_id, saga.reason),
    undone=(PaymentRefunded, PaymentFailed),  # the latter when there was nothing to give back
    undo_failed=PaymentRefundFailed,
)
CONFIRM: Final = Step(
    name="confirm",
    topic=None,
    each_line=False,
    action=lambda order, line, saga: ConfirmOrder(order.order_id),
    done=OrderConfirmed,
    failed=OrderRejected,
    compensation=None,  # undone with the order itself
    undone=(),
    undo_failed=None,
)

DEFINITIONS: Final[Mapping[int, Sequence[Step]]] = {1: (PLACE, RESERVE, CHARGE, CONFIRM)}
"""All versions that a running saga may have begun with."""
NEWEST: Final = max(DEFINITIONS)

STOCK_REPLIES: Final[tuple[type[Message], ...]] = (
    StockReserved,
    StockReservationFailed,
    StockReleased,
    StockReleaseFailed,
)
"""Answers of a service with another key: they come by `saga-replies`."""
REPLIES: Final[tuple[type[Message], ...]] = (
    *STOCK_REPLIES,
    PaymentReceived,
    PaymentFailed,
    PaymentRefunded,
    PaymentRefundFailed,
)
"""All answers of services. Those of payments, whose key is the order's, are delivered in their own unit of work."""


class Policy(NamedTuple):
    """How long a saga waits and how often it tries, in milliseconds of production time."""

    step_timeout_ms: int
    retries: int
    backoff_ms: int

    @classmethod
    def of(cls, settings: Settings) -> "Policy":
        """What the settings say."""
        return cls(
            step_timeout_ms=int(settings.saga_step_timeout * 1000),
            retries=settings.saga_retries,
            backoff_ms=int(settings.saga_retry_backoff * 1000),
        )


class Command(NamedTuple):
    """Something to ask: of a topic, or of the order itself where that is None. `step` makes the command's id."""

    topic: Topic | None
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
            if run.name == name and run.line == (getattr(event, "line", 0) if run.line else 0):
                changed = _answered(run, answer, event, now_ms)
                if changed is not None:
                    reason = saga.reason or _reason(changed, answer, event)
                    return replace(saga, reason=reason, steps=_with(saga.steps, index, changed))
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
    """Which steps of a definition an event may answer, and how."""
    found: dict[type[Message], list[tuple[str, Answer]]] = {}
    for step in DEFINITIONS[version]:
        listed: list[tuple[Answer, type[Message] | None]] = [("undone", kind) for kind in step.undone]
        listed += [("done", step.done), ("failed", step.failed), ("undo_failed", step.undo_failed)]
        for answer, kind in listed:
            if kind is not None:
                found.setdefault(kind, []).append((step.name, answer))
    return found


# The states in which a step takes each answer. What comes again, or too late to matter, finds no such state.
_OPEN: Final[Mapping[Answer, frozenset[str]]] = {
    "done": frozenset(("pending", "asked", "timed_out")),
    "failed": frozenset(("asked", "timed_out")),
    "undone": frozenset(("asked", "timed_out", "done", "undoing", "undo_failed")),
    "undo_failed": frozenset(("done", "undoing")),
}


def _answered(run: StepRun, answer: Answer, event: Message, now_ms: int) -> StepRun | None:
    """The step after an answer, None when it does not wait for it."""
    if run.state not in _OPEN[answer]:
        return None
    if isinstance(event, PaymentFailed) and answer == "undone" and run.state != "undoing":
        return None  # an answer to the charge
    if isinstance(event, OrderRejected) and (run.state, event.command) not in _OWN_REFUSALS:
        return None  # somebody else's command was refused
    error = getattr(event, "reason", None) if answer in ("failed", "undo_failed") else None
    if answer in ("done", "failed"):
        return replace(run, state=answer, answered_ms=now_ms, error=error)
    if answer == "undone":
        return replace(run, state="undone", undo_answered_ms=now_ms, undo_error=None)
    return replace(
        run, state="undo_failed", undo_answered_ms=now_ms, undo_attempts=run.undo_attempts + 1, undo_error=error
    )


_OWN_REFUSALS: Final = {("asked", ConfirmOrder.event_type), ("undoing", CancelOrder.event_type)}


def _reason(run: StepRun, answer: Answer, event: Message) -> str | None:
    """Why a saga turns back at this answer; None when it does not."""
    if answer == "failed":
        return run.error
    if isinstance(event, OrderCancelled):
        return event.reason or "cancelled"
    return None


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


def step_of(saga: Saga, run: StepRun) -> Step:
    """What a step of a saga is in its definition."""
    return next(step for step in DEFINITIONS[saga.version] if step.name == run.name)


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
            expired = replace(
                run,
                state="undo_failed",
                undo_answered_ms=now_ms,
                undo_attempts=run.undo_attempts + 1,
                undo_error=NO_ANSWER,
            )
            saga = replace(saga, steps=_with(saga.steps, index, expired))
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
    return Command(step.topic, getattr(payload, field), payload, command_step(name, line))


def _with(steps: tuple[StepRun, ...], index: int, run: StepRun) -> tuple[StepRun, ...]:
    return (*steps[:index], run, *steps[index + 1 :])
