"""The outside contract is complete, stable, and shows nothing internal."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, ClassVar

import msgspec
import pytest

from engine.declare.envelope import Envelope, Message, Metadata, new_envelope
from streams.events.integration import publishes, to_integration
from streams.events.inventory import (
    InventoryRejected,
    StockAdded,
    StockReleased,
    StockReleaseFailed,
    StockReservationFailed,
    StockReserved,
    StockShipped,
)
from streams.events.money import Money
from streams.events.orders import (
    CancelOrder,
    OrderCancelled,
    OrderConfirmed,
    OrderItem,
    OrderPlaced,
    OrderRejected,
)
from streams.events.payments import (
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    PaymentRefundFailed,
)

TOTAL = Money(Decimal("39.90"), "USD")
TOTAL_JSON = {"amount": "39.90", "currency": "USD"}


def event(payload: Message) -> Envelope[Any]:
    return new_envelope(
        payload,
        event_id="event-1",
        aggregate_id="order-1",
        timestamp=datetime(2026, 11, 23, 10, tzinfo=UTC),
        metadata=Metadata("correlation", "causation", "user"),
        aggregate_version=7,
    )


@pytest.mark.parametrize(
    ("payload", "published"),
    [
        (
            OrderPlaced(
                "o", "c", (OrderItem("p", 2, Money(Decimal("19.95"), "USD")),), TOTAL, "France", "someone@example.org"
            ),
            {
                "order_id": "o",
                "customer_id": "c",
                "items": [{"product_id": "p", "quantity": 2, "price": {"amount": "19.95", "currency": "USD"}}],
                "total": TOTAL_JSON,
            },
        ),
        (OrderConfirmed("o", "c", TOTAL), {"order_id": "o", "customer_id": "c", "total": TOTAL_JSON}),
        (
            OrderCancelled("o", "c", "late", TOTAL),
            {"order_id": "o", "customer_id": "c", "reason": "late", "total": TOTAL_JSON},
        ),
        (
            OrderRejected("o", None, "order.cancel", "not_placed", "nothing was placed under this id"),
            {
                "order_id": "o",
                "customer_id": None,
                "command": "order.cancel",
                "reason": "not_placed",
                "detail": "nothing was placed under this id",
            },
        ),
        (StockReserved("p", "o", 2, 3), {"product_id": "p", "order_id": "o", "line": 2, "quantity": 3}),
        (
            StockReservationFailed("p", "o", 2, 3, 1, "out_of_stock"),
            {"product_id": "p", "order_id": "o", "line": 2, "quantity": 3, "reason": "out_of_stock"},
        ),
        (StockReleased("p", "o", 2, 0), {"product_id": "p", "order_id": "o", "line": 2, "quantity": 0}),
        (
            PaymentReceived("o", "c", TOTAL, "reference of the gateway"),
            {"order_id": "o", "customer_id": "c", "amount": TOTAL_JSON},
        ),
        (
            PaymentFailed("o", "c", TOTAL, "declined"),
            {"order_id": "o", "customer_id": "c", "amount": TOTAL_JSON, "reason": "declined"},
        ),
        (
            PaymentFailed("o", None, None, "refunded_before"),
            {"order_id": "o", "customer_id": None, "amount": None, "reason": "refunded_before"},
        ),
        (
            PaymentRefunded("o", "c", TOTAL, "reference of the gateway"),
            {"order_id": "o", "customer_id": "c", "amount": TOTAL_JSON},
        ),
    ],
)
def test_each_published_event_has_exactly_these_fields(payload: Message, published: dict[str, Any]) -> None:
    integration = to_integration(event(payload))
    assert integration is not None
    assert json.loads(integration[0]) == {
        "event_id": "event-1",
        "event_type": payload.event_type,
        "timestamp": "2026-11-23T10:00:00.000000Z",
        "payload": published,
    }


def test_the_headers_are_cloud_events_in_binary_mode() -> None:
    integration = to_integration(event(OrderConfirmed("o", "c", TOTAL)))
    assert integration is not None
    assert integration[1] == [
        ("ce_id", b"event-1"),
        ("ce_type", b"order.confirmed"),
        ("ce_source", b"/order-processing"),
        ("ce_specversion", b"1.0"),
        ("ce_time", b"2026-11-23T10:00:00.000000Z"),
        ("content-type", b"application/json"),
    ]


def test_what_has_no_contract_is_not_published() -> None:
    for payload in (
        CancelOrder("o"),
        StockAdded("p", 3, 3),
        StockShipped("p", "o", 1, 3),
        StockReleaseFailed("p", "o", 1, "already_shipped"),
        InventoryRejected("p", None, "inventory.stock", "invalid_quantity", "at least 1 piece can be added"),
        PaymentRefundFailed("o", "c", TOTAL, "expired"),
    ):
        assert to_integration(event(payload)) is None


def test_an_event_has_one_contract() -> None:
    with pytest.raises(ValueError, match=r"order\.placed already has an integration contract"):
        publishes(OrderPlaced)(lambda placed: placed)


def test_another_service_publishes_its_own_events() -> None:
    class ParcelSent(Message, frozen=True, gc=False):
        event_type: ClassVar[str] = "parcel.sent"
        schema_version: ClassVar[int] = 1
        aggregate_type: ClassVar[str] = "Parcel"

        parcel_id: str
        shelf: str

    class PublishedParcelSent(msgspec.Struct, frozen=True):
        parcel_id: str

    @publishes(ParcelSent)
    def parcel_sent(sent: ParcelSent) -> PublishedParcelSent:
        return PublishedParcelSent(sent.parcel_id)

    integration = to_integration(event(ParcelSent("parcel-1", "internal")))
    assert integration is not None
    assert json.loads(integration[0])["payload"] == {"parcel_id": "parcel-1"}
