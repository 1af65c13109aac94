"""The stable outside contract, derived from domain events: snake_case JSON with CloudEvents headers."""

from collections.abc import Callable, Mapping
from typing import Any, Final, Generic, TypeVar, get_type_hints

import msgspec

from engine import Envelope, Message, format_timestamp
from streams.events.inventory import StockReleased, StockReservationFailed, StockReserved
from streams.events.money import Money
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderItem, OrderPlaced, OrderRejected
from streams.events.payments import PaymentFailed, PaymentReceived, PaymentRefunded

M = TypeVar("M", bound=Message)
P = TypeVar("P", bound=msgspec.Struct)
Headers = list[tuple[str, bytes]]

SOURCE: Final = b"/order-processing"
"""`ce_source` of everything published here, a URI reference as CloudEvents 1.0 asks for."""


CLOUD_EVENT_HEADERS: Final = ("ce_id", "ce_type", "ce_source", "ce_specversion", "ce_time", "content-type")


class IntegrationEvent(msgspec.Struct, Generic[P], frozen=True, gc=False):
    """The published value; the payload is one of the contracts below, or another service's."""

    event_id: str
    event_type: str
    timestamp: str
    payload: P


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


def published_types() -> Mapping[type[Message], type[msgspec.Struct]]:
    """Events that are published, and the class of the payload that each has outside."""
    return {event: get_type_hints(contract)["return"] for event, contract in _contracts.items()}


def published_values() -> Mapping[type[Message], Any]:
    """Events that are published, and the type of the value that each has outside."""
    return {event: IntegrationEvent[payload] for event, payload in published_types().items()}  # type: ignore[valid-type]


def to_integration(envelope: Envelope[Any]) -> tuple[bytes, Headers] | None:
    """Return value and headers for `integration-events`, or None when the type is not published.

    Headers are CloudEvents 1.0 attributes in Kafka's binary mode.
    """
    contract = _contracts.get(type(envelope.payload))
    if contract is None:
        return None
    timestamp = format_timestamp(envelope.timestamp)
    event = IntegrationEvent(envelope.event_id, envelope.event_type, timestamp, contract(envelope.payload))
    values = (
        envelope.event_id.encode(),
        envelope.event_type.encode(),
        SOURCE,
        b"1.0",
        timestamp.encode(),
        b"application/json",
    )
    return _encode(event), list(zip(CLOUD_EVENT_HEADERS, values, strict=True))


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


# ---- inventory: what is left on the shelf is nobody else's business


class PublishedStockChange(msgspec.Struct, frozen=True, gc=False):
    """`inventory.reserved` and `inventory.released` for the outside; `line` counts the order's lines from 1 on."""

    product_id: str
    order_id: str
    line: int
    quantity: int


class PublishedReservationFailed(msgspec.Struct, frozen=True, gc=False):
    """`inventory.reservation_failed` for the outside; `quantity` is what was asked for."""

    product_id: str
    order_id: str
    line: int
    quantity: int
    reason: str


@publishes(StockReserved)
def _stock_reserved(event: StockReserved) -> PublishedStockChange:
    return PublishedStockChange(event.product_id, event.order_id, event.line, event.quantity)


@publishes(StockReservationFailed)
def _reservation_failed(event: StockReservationFailed) -> PublishedReservationFailed:
    return PublishedReservationFailed(event.product_id, event.order_id, event.line, event.quantity, event.reason)


@publishes(StockReleased)
def _stock_released(event: StockReleased) -> PublishedStockChange:
    return PublishedStockChange(event.product_id, event.order_id, event.line, event.quantity)


# ---- payments: the gateway's references stay inside


class PublishedPayment(msgspec.Struct, frozen=True, gc=False):
    """`payment.received` and `payment.refunded` for the outside."""

    order_id: str
    customer_id: str
    amount: Money


class PublishedPaymentFailed(msgspec.Struct, frozen=True, gc=False):
    """`payment.failed` for the outside; customer and amount are null when nothing was ever asked for."""

    order_id: str
    customer_id: str | None
    amount: Money | None
    reason: str


@publishes(PaymentReceived)
def _payment_received(event: PaymentReceived) -> PublishedPayment:
    return PublishedPayment(event.order_id, event.customer_id, event.amount)


@publishes(PaymentFailed)
def _payment_failed(event: PaymentFailed) -> PublishedPaymentFailed:
    return PublishedPaymentFailed(event.order_id, event.customer_id, event.amount, event.reason)


@publishes(PaymentRefunded)
def _payment_refunded(event: PaymentRefunded) -> PublishedPayment:
    return PublishedPayment(event.order_id, event.customer_id, event.amount)
