"""Who is told what by mail, and how the mails of an order are stored."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from domain.notifications import notification_of_order, notification_of_payment
from domain.orders import Order
from engine.declare.errors import InvalidPayload
from engine.declare.registry import EventRegistry
from engine.declare.table import encode_prefix
from streams.events.money import Money
from streams.events.notifications import NOTIFICATION_TYPES, NotificationKind, SendNotification
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderItem, OrderPlaced
from streams.events.payments import PaymentFailed
from tables.notifications import NOTIFICATIONS, NotificationKey

TOTAL = Money(Decimal("3.00"), "USD")
ITEMS = (OrderItem("SKU-1", 2, Money(Decimal("1.50"), "USD")),)
ORDER = Order(
    order_id="o-1",
    customer_id="c-1",
    status="pending",
    items=ITEMS,
    item_count=2,
    total=TOTAL,
    country=None,
    email="ada@example.com",
    created_at=datetime(2010, 12, 1, tzinfo=UTC),
    confirmed_at=None,
    cancelled_at=None,
    cancel_reason=None,
    version=1,
)
PLACED = OrderPlaced("o-1", "c-1", ITEMS, TOTAL, email="ada@example.com")
CONFIRMED = OrderConfirmed("o-1", "c-1", TOTAL)
CANCELLED = OrderCancelled("o-1", "c-1", "changed my mind", TOTAL)
FAILED = PaymentFailed("o-1", "c-1", TOTAL, "card_declined")


def told(kind: NotificationKind, reason: str | None = None) -> SendNotification:
    return SendNotification("o-1", kind, "ada@example.com", "c-1", ITEMS, TOTAL, reason)


def test_a_customer_is_told_of_placing_with_what_the_event_says_even_before_the_order_is_known() -> None:
    assert notification_of_order(PLACED, None) == told("order_placed")


@pytest.mark.parametrize(
    ("event", "expected"),
    [(CONFIRMED, told("order_confirmed")), (CANCELLED, told("order_cancelled", "changed my mind"))],
)
def test_a_customer_is_told_of_later_events_with_what_the_order_says(event: Any, expected: SendNotification) -> None:
    assert notification_of_order(event, ORDER) == expected


def test_a_customer_is_told_of_a_failed_payment_with_its_reason() -> None:
    assert notification_of_payment(FAILED, ORDER) == told("payment_failed", "card_declined")


def test_nobody_is_told_that_a_cancelled_order_was_not_charged() -> None:
    never_charged = PaymentFailed("o-1", None, None, "cancelled_before_charge")
    assert notification_of_payment(never_charged, ORDER) is None


@pytest.mark.parametrize("email", [None, ""])
def test_without_an_address_nobody_is_told_anything(email: str | None) -> None:
    assert notification_of_order(replace(PLACED, email=email), ORDER) is None
    order = replace(ORDER, email=email)
    assert notification_of_order(CONFIRMED, order) is None
    assert notification_of_order(CANCELLED, order) is None
    assert notification_of_payment(FAILED, order) is None


def test_of_an_unknown_order_nobody_is_told_anything() -> None:
    assert notification_of_order(CONFIRMED, None) is None
    assert notification_of_payment(FAILED, None) is None


def test_what_a_notification_is_about_must_be_an_exact_amount() -> None:
    value = (
        b'{"eventId":"n-1","eventType":"notification.send","aggregateId":"o-1","aggregateType":"Notification",'
        b'"timestamp":"2010-12-01T00:00:00Z","version":1,"metadata":{},"payload":{"orderId":"o-1","kind":"order_placed",'
        b'"email":"ada@example.com","customerId":"c-1","items":[],"total":{"amount":"NaN","currency":"USD"}}}'
    )
    with pytest.raises(InvalidPayload, match="amount"):
        EventRegistry(NOTIFICATION_TYPES).decode(value)


@given(order_id=st.text(min_size=1, max_size=128), kind=st.sampled_from(get_args(NotificationKind)))
def test_the_mails_of_an_order_are_stored_together(order_id: str, kind: str) -> None:
    key = NotificationKey(order_id, kind)
    raw = NOTIFICATIONS.key.encode(key)
    assert NOTIFICATIONS.key.decode(raw) == key
    assert raw.startswith(encode_prefix(order_id))
    assert not raw.startswith(encode_prefix(f"{order_id}x"))
