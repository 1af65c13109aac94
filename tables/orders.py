"""The tables of the order aggregate: its state, its history and the commands it has handled."""

from datetime import datetime
from typing import Final, Literal

import msgspec

from engine.declare.table import NUMBERED_KEY, Table
from streams.events.money import Money
from streams.events.orders import OrderItem, SagaStyle

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


class HandledCommand(msgspec.Struct, frozen=True, gc=False):
    """The mark that a command took effect, at `marked_at_ms` (epoch, production time)."""

    order_id: str
    marked_at_ms: int


ORDERS: Table[str, Order] = Table("orders", Order, help="every order as it is now, by order id")

ORDER_HISTORY: Table[tuple[str, int], msgspec.Raw] = Table(
    "order-history",
    msgspec.Raw,
    NUMBERED_KEY,
    help="every event of every order as it was published, the audit trail",
    cached=False,
)

HANDLED_COMMANDS: Table[str, HandledCommand] = Table(
    "handled-commands",
    HandledCommand,
    help="ids of commands that took effect, so that a repeated one does not",
    marked_at_ms=lambda row: row.marked_at_ms,
    cached=False,
)
