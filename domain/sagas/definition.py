"""The definition of a saga: its steps, each with its action, its compensation, and the events that answer them.

A definition is data. A new step is one more entry, in a new version of the definition; running sagas keep the version
they began with.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from domain.orders import Order
from domain.sagas.state import Saga, StepRun, StepState
from engine import Message
from streams.events.inventory import (
    ReleaseStock,
    ReserveStock,
    StockReleased,
    StockReleaseFailed,
    StockReservationFailed,
    StockReserved,
)
from streams.events.orders import CancelOrder, ConfirmOrder, OrderCancelled, OrderConfirmed, OrderPlaced, OrderRejected
from streams.events.payments import (
    ChargePayment,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    PaymentRefundFailed,
    RefundPayment,
)

CommandMaker = Callable[[Order, int, Saga], Message]
Outcome = Literal["done", "failed", "undone", "undo_failed"]

# The states in which a step takes each outcome. What comes again, or too late to matter, finds no such state.
OPEN_STATES: Final[Mapping[Outcome, frozenset[StepState]]] = {
    "done": frozenset(("pending", "asked", "timed_out")),
    "failed": frozenset(("asked", "timed_out")),
    "undone": frozenset(("asked", "timed_out", "done", "undoing", "undo_failed")),
    "undo_failed": frozenset(("done", "undoing")),
}


@dataclass(frozen=True)
class Answer:
    """An event that answers a step, and the outcome it stands for.

    `states` narrows the states in which the step takes it, those of the outcome otherwise. `answers_to` is the command
    that the event has to name, for events that name one. `turns_back` is why the saga turns back at an answer that is
    no failure, unless the event gives a reason itself; None where it does not turn back.
    """

    outcome: Outcome
    event: type[Message]
    states: frozenset[StepState] | None = None
    answers_to: type[Message] | None = None
    turns_back: str | None = None

    def fits(self, run: StepRun, event: Message) -> bool:
        """Whether a step in its present state takes the event as this answer."""
        if run.state not in (self.states or OPEN_STATES[self.outcome]):
            return False
        return self.answers_to is None or getattr(event, "command", None) == self.answers_to.event_type

    def reason(self, event: Message) -> str | None:
        """Why the saga turns back at this answer; None when it does not."""
        reason: str | None = getattr(event, "reason", None)
        if self.outcome == "failed":
            return reason
        return (reason or self.turns_back) if self.turns_back is not None else None


@dataclass(frozen=True)
class Step:
    """One step of a definition.

    `action` and `compensation` make the command for a line of the order (0 for all of it); None where there is nothing
    to ask. A `local` step is asked of the order itself, which decides at once; others are asked of a service.
    """

    name: str
    local: bool
    each_line: bool
    action: CommandMaker | None
    compensation: CommandMaker | None
    answers: tuple[Answer, ...]

    def event(self, outcome: Outcome) -> type[Message] | None:
        """The event that usually tells the outcome; None where there is none."""
        return next((answer.event for answer in self.answers if answer.outcome == outcome), None)


def _line(order: Order, line: int) -> Any:
    return order.items[line - 1]


def _charge(order: Order, line: int, saga: Saga) -> Message:
    assert order.customer_id is not None, "a placed order has a customer"
    assert order.total is not None, "a placed order has a total"
    return ChargePayment(order.order_id, order.customer_id, order.total)


_UNDOING: Final = frozenset[StepState](("undoing",))

PLACE: Final = Step(
    name="place",
    local=True,
    each_line=False,
    action=None,
    compensation=lambda order, line, saga: CancelOrder(order.order_id, saga.reason),
    answers=(
        Answer("done", OrderPlaced),
        Answer("undone", OrderCancelled, turns_back="cancelled"),
        Answer("undo_failed", OrderRejected, states=_UNDOING, answers_to=CancelOrder),
    ),
)
RESERVE: Final = Step(
    name="reserve",
    local=False,
    each_line=True,
    action=lambda order, line, saga: ReserveStock(
        _line(order, line).product_id, order.order_id, _line(order, line).quantity, line
    ),
    compensation=lambda order, line, saga: ReleaseStock(_line(order, line).product_id, order.order_id, line),
    answers=(
        Answer("done", StockReserved),
        Answer("failed", StockReservationFailed),
        Answer("undone", StockReleased),
        Answer("undo_failed", StockReleaseFailed),
    ),
)
CHARGE: Final = Step(
    name="charge",
    local=False,
    each_line=False,
    action=_charge,
    compensation=lambda order, line, saga: RefundPayment(order.order_id, saga.reason),
    answers=(
        Answer("done", PaymentReceived),
        Answer("failed", PaymentFailed),
        Answer("undone", PaymentRefunded),
        Answer("undone", PaymentFailed, states=_UNDOING),  # there was nothing to give back
        Answer("undo_failed", PaymentRefundFailed),
    ),
)
CONFIRM: Final = Step(
    name="confirm",
    local=True,
    each_line=False,
    action=lambda order, line, saga: ConfirmOrder(order.order_id),
    compensation=None,  # undone with the order itself
    answers=(
        Answer("done", OrderConfirmed),
        Answer("failed", OrderRejected, states=frozenset(("asked",)), answers_to=ConfirmOrder),
    ),
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


def step_of(saga: Saga, run: StepRun) -> Step:
    """The step of the saga's definition that a run is of."""
    return next(step for step in DEFINITIONS[saga.version] if step.name == run.name)
