"""Reads of committed rows, and the shapes in which the web view answers them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec

from domain.orders import UNKNOWN, Order
from engine import Envelope, Partition, TimeText, encode_prefix, format_timestamp
from engine.web import Hop, Path
from streams.events.money import Money
from streams.events.orders import OrderRejected
from streams.topics import CUSTOMER_ORDER_EVENTS, ORDER_COMMANDS, ORDER_EVENTS, SAGA_COMMANDS
from tables.orders import ORDER_HISTORY, ORDERS
from tables.orders.customer_orders import CustomerOrder

# How commands reach each view, for tokens. A new projection adds its path here: the path of what feeds it, plus one hop
# with the agent that writes the view and the topic it reads. A test compares every hop with the agents there are.
ORDER_PATH: Final[Path] = (Hop("decide-orders", ORDER_COMMANDS),)
CUSTOMER_ORDERS_PATH: Final[Path] = (*ORDER_PATH, Hop("project-customer-orders", CUSTOMER_ORDER_EVENTS))
# A saga begins in the unit of work that places its order.
SAGA_PATH: Final[Path] = (*ORDER_PATH, Hop("resume-sagas", SAGA_COMMANDS))
ORDER_INDEX_PATH: Final[Path] = (*ORDER_PATH, Hop("index-orders", ORDER_EVENTS))

StatusText = Annotated[str, msgspec.Meta(extra_json_schema={"enum": ["pending", "confirmed", "cancelled", "rejected"]})]

_decode_event = msgspec.json.Decoder(Envelope[msgspec.Raw]).decode
_decode_rejected = msgspec.json.Decoder(OrderRejected).decode


class ItemView(msgspec.Struct, frozen=True, gc=False):
    """One line of an order; `price` is for one piece."""

    product_id: str
    quantity: int
    price: Money


class OrderSummaryView(msgspec.Struct, frozen=True, gc=False):
    """An order in a list; times are business time as in the envelope."""

    order_id: str
    customer_id: str | None
    status: StatusText
    item_count: int
    total: Money | None
    created_at: TimeText | None
    confirmed_at: TimeText | None
    cancelled_at: TimeText | None
    version: int


class OrderView(OrderSummaryView, frozen=True, gc=False):
    """An order by itself; the customer's mail address is not shown."""

    country: str | None
    items: tuple[ItemView, ...]
    cancel_reason: str | None
    shipped_at: TimeText | None


def order_view(order: Order) -> OrderView:
    """An order as the web view shows it."""
    return OrderView(
        order.order_id,
        order.customer_id,
        order.status,
        order.item_count,
        order.total,
        _time(order.created_at),
        _time(order.confirmed_at),
        _time(order.cancelled_at),
        order.version,
        order.country,
        tuple([ItemView(item.product_id, item.quantity, item.price) for item in order.items]),
        order.cancel_reason,
        _time(order.shipped_at),
    )


def is_shown(order: Order) -> bool:
    """Whether anything was placed under the order's id."""
    return order.status != UNKNOWN


def find_order(task: Partition, order_id: str) -> Order | None:
    """The order, None when nothing was placed under the id."""
    order = task.read(ORDERS, order_id)
    return order if order is not None and is_shown(order) else None


def order_history(task: Partition, order_id: str) -> list[bytes]:
    """Every event of the order as it was published, oldest first."""
    return [bytes(value) for _, value in task.scan(ORDER_HISTORY, encode_prefix(order_id))]


def decision_of(task: Partition, order_id: str, command_id: str) -> Envelope[msgspec.Raw] | None:
    """The event by which the order answered a command; None when it has not decided about it."""
    events = (_decode_event(value) for _, value in task.scan(ORDER_HISTORY, encode_prefix(order_id), reverse=True))
    return next((event for event in events if event.metadata.causation_id == command_id), None)


def refusal_in(event: Envelope[msgspec.Raw]) -> OrderRejected | None:
    """Why the order refused a command, by the event that answered it; None when it did not."""
    return _decode_rejected(event.payload) if event.event_type == OrderRejected.event_type else None


def summary_view(row: Order | CustomerOrder) -> OrderSummaryView:
    """An order as lists show it."""
    return OrderSummaryView(
        row.order_id,
        row.customer_id,
        row.status,
        row.item_count,
        row.total,
        _time(row.created_at),
        _time(row.confirmed_at),
        _time(row.cancelled_at),
        row.version,
    )


def _time(time: datetime | None) -> str | None:
    return None if time is None else format_timestamp(time)
