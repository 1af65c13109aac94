"""The stable outside contract, derived from domain events: snake_case JSON with CloudEvents headers."""

from collections.abc import Callable
from typing import Any, Final, TypeVar

import msgspec

from streams.envelope import Envelope, Message, format_timestamp
from streams.events.money import Money
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderItem, OrderPlaced, OrderRejected

M = TypeVar("M", bound=Message)
Headers = list[tuple[str, bytes]]

SOURCE: Final = b"/order-processing"
"""`ce_source` of everything published here, a URI reference as CloudEvents 1.0 asks for."""


class IntegrationEvent(msgspec.Struct, frozen=True, gc=False):
    """The published value; the payload is one of the contracts below, or another service's."""

    event_id: str
    event_type: str
    timestamp: str
    payload: msgspec.Struct


class PublishedItem(msgspec.Struct, frozen=True, gc=False):
    """One line of a placed order; `price` is for one piece."""

    product_id: str
    quantity: int
    price: Money


class PublishedOrderPlaced(msgspec.Struct, frozen=True, gc=False):
    """`order.placed` for the outside."""

    order_id: str
    customer_id: str
    items: tuple[PublishedItem, ...]
    total: Money


class PublishedOrderConfirmed(msgspec.Struct, frozen=True, gc=False):
    """`order.confirmed` for the outside."""

    order_id: str
    customer_id: str
    total: Money


class PublishedOrderCancelled(msgspec.Struct, frozen=True, gc=False):
    """`order.cancelled` for the outside."""

    order_id: str
    customer_id: str
    reason: str | None
    total: Money


class PublishedOrderRejected(msgspec.Struct, frozen=True, gc=False):
    """`order.rejected` for the outside; `command` is the refused one, so a refused cancellation is told apart."""

    order_id: str
    customer_id: str | None
    command: str
    reason: str
    detail: str


_contracts: dict[type[Message], Callable[[Any], msgspec.Struct]] = {}
_encode = msgspec.json.Encoder().encode


def publishes(event_class: type[M]) -> Callable[[Callable[[M], msgspec.Struct]], Callable[[M], msgspec.Struct]]:
    """Register how an event's payload looks outside; each service does so for its own events.

    Raises ValueError when the event has a contract already.
    """

    def add(contract: Callable[[M], msgspec.Struct]) -> Callable[[M], msgspec.Struct]:
        if _contracts.setdefault(event_class, contract) is not contract:
            raise ValueError(f"{event_class.event_type} already has an integration contract")
        return contract

    return add


def to_integration(envelope: Envelope[Any]) -> tuple[bytes, Headers] | None:
    """Return value and headers for `integration-events`, or None when the type is not published.

    Headers are CloudEvents 1.0 attributes in Kafka's binary mode.
    """
    contract = _contracts.get(type(envelope.payload))
    if contract is None:
        return None
    timestamp = format_timestamp(envelope.timestamp)
    event = IntegrationEvent(envelope.event_id, envelope.event_type, timestamp, contract(envelope.payload))
    headers = [
        ("ce_id", envelope.event_id.encode()),
        ("ce_type", envelope.event_type.encode()),
        ("ce_source", SOURCE),
        ("ce_specversion", b"1.0"),
        ("ce_time", timestamp.encode()),
        ("content-type", b"application/json"),
    ]
    return _encode(event), headers


def _published_item(item: OrderItem) -> PublishedItem:
    return PublishedItem(item.product_id, item.quantity, item.price)


@publishes(OrderPlaced)
def _order_placed(event: OrderPlaced) -> PublishedOrderPlaced:
    items = tuple(_published_item(item) for item in event.items)
    return PublishedOrderPlaced(event.order_id, event.customer_id, items, event.total)


@publishes(OrderConfirmed)
def _order_confirmed(event: OrderConfirmed) -> PublishedOrderConfirmed:
    return PublishedOrderConfirmed(event.order_id, event.customer_id, event.total)


@publishes(OrderCancelled)
def _order_cancelled(event: OrderCancelled) -> PublishedOrderCancelled:
    return PublishedOrderCancelled(event.order_id, event.customer_id, event.reason, event.total)


@publishes(OrderRejected)
def _order_rejected(event: OrderRejected) -> PublishedOrderRejected:
    return PublishedOrderRejected(event.order_id, event.customer_id, event.command, event.reason, event.detail)
