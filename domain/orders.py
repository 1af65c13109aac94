"""The order aggregate: what may happen to an order, and what an order becomes when it happens."""

from collections.abc import Callable, Iterable
from datetime import datetime
from decimal import Context, Decimal, DecimalException, Inexact, InvalidOperation, Overflow, Rounded
from typing import Any, Final, Literal

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from domain.prices import price_problem
from engine import Envelope
from streams.events.money import Money
from streams.events.orders import (
    CancelOrder,
    ConfirmOrder,
    OrderCancelled,
    OrderCommand,
    OrderConfirmed,
    OrderEvent,
    OrderItem,
    OrderPlaced,
    OrderRejected,
    OrderShipped,
    PlaceOrder,
    SagaStyle,
    ShipOrder,
)

OrderStatus = Literal["unknown", "pending", "confirmed", "cancelled", "rejected"]

UNKNOWN: Final = "unknown"
"""Commands were refused, but nothing was placed: views answer as if there were no row."""
PENDING: Final = "pending"
CONFIRMED: Final = "confirmed"
CANCELLED: Final = "cancelled"
REJECTED: Final = "rejected"
"""Placing was refused; nothing can happen to the order any more."""


class Order(msgspec.Struct, frozen=True, gc=False):
    """One order.

    An `unknown` or `rejected` order has no items, total and created_at; an `unknown` one no customer. `item_count` is
    the sum of quantities, `version` the number of events of the order so far. `saga` is the style of its saga. Times
    are business time, aware UTC.
    """

    order_id: str
    customer_id: str | None
    status: OrderStatus
    items: tuple[OrderItem, ...]
    item_count: int
    total: Money | None
    country: str | None
    email: str | None
    created_at: datetime | None
    confirmed_at: datetime | None
    cancelled_at: datetime | None
    cancel_reason: str | None
    version: int
    shipped_at: datetime | None = None
    saga: SagaStyle | None = None


QUANTITY_MAX: Final = 1_000_000_000
"""The most pieces in one line; sums of quantities then fit 64 bits."""

# Arithmetic that refuses to round: a total of more than 28 digits is an error, not an approximation.
_EXACT: Final = Context(prec=28, traps=[Inexact, Rounded, Overflow, InvalidOperation])

_STATUS_REFUSALS: Final[dict[OrderStatus, tuple[str, str]]] = {
    UNKNOWN: ("not_placed", "nothing was placed under this id"),
    PENDING: ("already_placed", "an order was placed under this id"),
    CONFIRMED: ("already_confirmed", "the order is confirmed"),
    CANCELLED: ("already_cancelled", "the order is cancelled"),
    REJECTED: ("already_rejected", "an order was rejected under this id; place it under a new one"),
}


_TAKEN: Final = frozenset((_STATUS_REFUSALS[PENDING][0], _STATUS_REFUSALS[REJECTED][0]))
"""Why placing is refused where there is an order already."""


class InvalidOrderState(Exception):
    """A command that the order's state or the business rules refuse.

    `reason` is a stable snake_case code, `detail` a sentence for people.
    """

    def __init__(self, reason: str, detail: str) -> None:
        """Keep code and sentence."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def decide(order: Order | None, command: OrderCommand, price_decimals: int | None = None) -> tuple[OrderEvent, ...]:
    """Return the events that follow from a command; raises InvalidOrderState when it is refused.

    `price_decimals` is how many decimals prices may have where their currency has fewer.
    """
    if isinstance(command, PlaceOrder):
        return _place(order, command, price_decimals)
    return _DECISIONS[type(command)](order, command)


def evolve(order: Order | None, event: Envelope[Any]) -> Order:
    """Return the order after an event; one that does not say its aggregate version counts as the next.

    Raises ValueError when the event is not the next one of the order's history, or cannot follow it.
    """
    version = order.version + 1 if order is not None else 1
    if event.aggregate_version != version and event.aggregate_version is not UNSET:
        raise ValueError(
            f"order {event.aggregate_id}: expected event {version} of its history, got {event.aggregate_version}"
        )
    return _EVOLUTIONS[event.event_type](order, event, version)


def replay(events: Iterable[Envelope[Any]]) -> Order | None:
    """Return the order after its whole history, oldest event first; None when there is none."""
    order: Order | None = None
    for event in events:
        order = evolve(order, event)
    return order


def check_requested(order: Order | None, command: OrderCommand) -> None:
    """Refuse what others may not ask for: an order with a saga is confirmed by it, once stock and money are there."""
    if isinstance(command, ConfirmOrder) and order is not None and order.saga is not None and order.status == PENDING:
        raise InvalidOrderState("saga_running", "the order is confirmed by itself once stock and money are there")


def begins_order(event: OrderEvent) -> bool:
    """Whether there is an order since this event: it was placed, or placing it was refused for good."""
    if isinstance(event, OrderRejected):
        return event.command == PlaceOrder.event_type and event.reason not in _TAKEN
    return isinstance(event, OrderPlaced)


def refusal(command: OrderCommand, error: InvalidOrderState) -> OrderRejected:
    """Return the event that tells that a command was refused."""
    customer_id = command.customer_id if isinstance(command, PlaceOrder) else None
    return OrderRejected(command.order_id, customer_id, command.event_type, error.reason, error.detail)


def _place(order: Order | None, command: PlaceOrder, price_decimals: int | None) -> tuple[OrderEvent, ...]:
    status = _status(order)
    if status != UNKNOWN:
        raise InvalidOrderState(*_STATUS_REFUSALS[REJECTED if status == REJECTED else PENDING])
    total = _total(command.items, price_decimals)
    if command.total is not None and command.total != total:
        raise InvalidOrderState(
            "total_mismatch",
            f"the total given is not the sum of quantity x price, which is {total.amount} {total.currency}",
        )
    placed = OrderPlaced(command.order_id, command.customer_id, command.items, total, command.country, command.email)
    return (placed,)


def _confirm(order: Order | None, command: ConfirmOrder) -> tuple[OrderEvent, ...]:
    customer_id, total = _placed(order, PENDING)
    return (OrderConfirmed(command.order_id, customer_id, total),)


def _cancel(order: Order | None, command: CancelOrder) -> tuple[OrderEvent, ...]:
    customer_id, total = _placed(order, PENDING, CONFIRMED)
    _require_here(order)
    return (OrderCancelled(command.order_id, customer_id, command.reason, total),)


def _ship(order: Order | None, command: ShipOrder) -> tuple[OrderEvent, ...]:
    if _status(order) == PENDING:
        raise InvalidOrderState("not_confirmed", "the order is not confirmed yet")
    customer_id, total = _placed(order, CONFIRMED)
    _require_here(order)
    return (OrderShipped(command.order_id, customer_id, total),)


def _require_here(order: Order | None) -> None:
    if order is not None and order.shipped_at is not None:
        raise InvalidOrderState("already_shipped", "the order has been sent away")


def _status(order: Order | None) -> OrderStatus:
    return UNKNOWN if order is None else order.status


def _placed(order: Order | None, *allowed: OrderStatus) -> tuple[str, Money]:
    """Return customer and total of an order in an allowed status; raises InvalidOrderState in any other."""
    if order is None or order.status not in allowed or order.customer_id is None or order.total is None:
        raise InvalidOrderState(*_STATUS_REFUSALS[_status(order)])
    return order.customer_id, order.total


def _total(items: tuple[OrderItem, ...], price_decimals: int | None) -> Money:
    """Return the sum of quantity x price; raises InvalidOrderState when the items break a rule."""
    if not items:
        raise InvalidOrderState("no_items", "an order needs at least one item")
    currency = items[0].price.currency
    amount = Decimal(0)
    try:
        for item in items:
            if not 1 <= item.quantity <= QUANTITY_MAX:
                raise InvalidOrderState("invalid_quantity", f"a quantity must be between 1 and {QUANTITY_MAX}")
            if (problem := price_problem(item.price, price_decimals)) is not None:
                raise InvalidOrderState(*problem)
            if item.price.currency != currency:
                raise InvalidOrderState("mixed_currencies", "all prices must be in one currency")
            amount = _EXACT.add(amount, _EXACT.multiply(item.price.amount, item.quantity))
    except DecimalException as error:
        raise InvalidOrderState("amount_out_of_range", "the total has more than 28 digits") from error
    return Money(amount, currency)


def _on_placed(order: Order | None, event: Envelope[OrderPlaced], version: int) -> Order:
    placed = event.payload
    if _status(order) != UNKNOWN:
        raise ValueError(f"order {event.aggregate_id}: placed twice")
    return Order(
        order_id=placed.order_id,
        customer_id=placed.customer_id,
        status=PENDING,
        items=placed.items,
        item_count=sum(item.quantity for item in placed.items),
        total=placed.total,
        country=placed.country,
        email=placed.email,
        created_at=event.timestamp,
        confirmed_at=None,
        cancelled_at=None,
        cancel_reason=None,
        version=version,
        saga=placed.saga or None,
    )


def _on_confirmed(order: Order | None, event: Envelope[OrderConfirmed], version: int) -> Order:
    return replace(_known(order, event), status=CONFIRMED, confirmed_at=event.timestamp, version=version)


def _on_cancelled(order: Order | None, event: Envelope[OrderCancelled], version: int) -> Order:
    return replace(
        _known(order, event),
        status=CANCELLED,
        cancelled_at=event.timestamp,
        cancel_reason=event.payload.reason,
        version=version,
    )


def _on_shipped(order: Order | None, event: Envelope[OrderShipped], version: int) -> Order:
    return replace(_known(order, event), shipped_at=event.timestamp, version=version)


def _on_rejected(order: Order | None, event: Envelope[OrderRejected], version: int) -> Order:
    if order is None:
        order = _nothing_placed(event.payload.order_id)
    if order.status == UNKNOWN and event.payload.command == PlaceOrder.event_type:
        return replace(order, status=REJECTED, customer_id=event.payload.customer_id, version=version)
    return replace(order, version=version)


def _known(order: Order | None, event: Envelope[Any]) -> Order:
    if order is None:
        raise ValueError(f"order {event.aggregate_id}: {event.event_type} before anything was placed")
    return order


def _nothing_placed(order_id: str) -> Order:
    return Order(
        order_id=order_id,
        customer_id=None,
        status=UNKNOWN,
        items=(),
        item_count=0,
        total=None,
        country=None,
        email=None,
        created_at=None,
        confirmed_at=None,
        cancelled_at=None,
        cancel_reason=None,
        version=0,
    )


_DECISIONS: Final[dict[type[Any], Callable[[Order | None, Any], tuple[OrderEvent, ...]]]] = {
    ConfirmOrder: _confirm,
    CancelOrder: _cancel,
    ShipOrder: _ship,
}

_EVOLUTIONS: Final[dict[str, Callable[[Order | None, Any, int], Order]]] = {
    OrderPlaced.event_type: _on_placed,
    OrderConfirmed.event_type: _on_confirmed,
    OrderCancelled.event_type: _on_cancelled,
    OrderShipped.event_type: _on_shipped,
    OrderRejected.event_type: _on_rejected,
}
