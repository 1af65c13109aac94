"""What the gateway is asked, what becomes of its answers, and that its events tell the whole payment."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest

from domain.payments import (
    FAILED,
    RECEIVED,
    REFUNDED,
    Charge,
    Outcome,
    Payment,
    PaymentCommand,
    PaymentEvent,
    Refund,
    call_for,
    decide,
    evolve,
    restate,
)
from engine.declare.envelope import Envelope, Metadata, follow_up, new_envelope
from engine.declare.registry import EventRegistry
from streams.events.money import Money
from streams.events.payment_answers import Charged, Declined, Refunded
from streams.events.payments import (
    PAYMENT_TYPES,
    ChargePayment,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    PaymentRefundFailed,
    RefundPayment,
)
from tables.payments import PAYMENTS

START = datetime(2026, 11, 23, 10, tzinfo=UTC)
AMOUNT = Money(Decimal("19.90"), "USD")
CHARGE = ChargePayment("order-1", "customer-1", AMOUNT)
CHARGE_MORE = ChargePayment("order-1", "customer-2", Money(Decimal("500"), "EUR"))
REFUND = RefundPayment("order-1", "cancelled")

CHARGED, REFUNDED_BY, DECLINED = Charged("ch-1"), Refunded("re-1"), Declined("card_declined")
RECEIVED_EVENT = PaymentReceived("order-1", "customer-1", AMOUNT, "ch-1")
FAILED_EVENT = PaymentFailed("order-1", "customer-1", AMOUNT, "card_declined")
REFUNDED_EVENT = PaymentRefunded("order-1", "customer-1", AMOUNT, "re-1")
REFUND_FAILED_EVENT = PaymentRefundFailed("order-1", "customer-1", AMOUNT, "too_late")
CANCELLED_EVENT = PaymentFailed("order-1", None, None, "cancelled_before_charge")

Step = tuple[PaymentCommand, Outcome | None]


class History:
    """A payment and its events, driven by commands as the service drives it; one minute passes per event."""

    def __init__(self, *steps: Step) -> None:
        self.payment: Payment | None = None
        self.events: list[Envelope[Any]] = []
        for command, outcome in steps:
            assert restate(self.payment, command) is None
            self.add(decide(self.payment, command, outcome))

    def add(self, payload: PaymentEvent) -> None:
        cause = new_envelope(
            CHARGE,
            event_id=f"command-{len(self.events)}",
            aggregate_id="order-1",
            timestamp=START + timedelta(minutes=len(self.events)),
            metadata=Metadata(),
        )
        version = len(self.events) + 1
        event = follow_up(cause, payload, step=str(version), aggregate_id="order-1", aggregate_version=version)
        self.events.append(event)
        self.payment = evolve(self.payment, event)


GIVEN_CHARGED: tuple[Step, ...] = ((CHARGE, CHARGED),)
GIVEN_DECLINED: tuple[Step, ...] = ((CHARGE, DECLINED),)
GIVEN_REFUSED: tuple[Step, ...] = (*GIVEN_CHARGED, (REFUND, Declined("too_late")))
GIVEN_REFUNDED: tuple[Step, ...] = (*GIVEN_CHARGED, (REFUND, REFUNDED_BY))
GIVEN_CANCELLED: tuple[Step, ...] = ((REFUND, None),)


# ---- given, when, then


@pytest.mark.parametrize(
    ("given", "when", "asked", "answer", "then", "status"),
    [
        ((), CHARGE, Charge("order-1", "customer-1", AMOUNT, "order-1"), CHARGED, RECEIVED_EVENT, RECEIVED),
        ((), CHARGE, Charge("order-1", "customer-1", AMOUNT, "order-1"), DECLINED, FAILED_EVENT, FAILED),
        ((), REFUND, None, None, CANCELLED_EVENT, FAILED),
        (
            GIVEN_CHARGED,
            REFUND,
            Refund("order-1", "ch-1", AMOUNT, "refund:order-1:1"),
            REFUNDED_BY,
            REFUNDED_EVENT,
            REFUNDED,
        ),
        (
            GIVEN_CHARGED,
            REFUND,
            Refund("order-1", "ch-1", AMOUNT, "refund:order-1:1"),
            Declined("too_late"),
            REFUND_FAILED_EVENT,
            RECEIVED,
        ),
        (
            GIVEN_REFUSED,
            REFUND,
            Refund("order-1", "ch-1", AMOUNT, "refund:order-1:2"),
            REFUNDED_BY,
            REFUNDED_EVENT,
            REFUNDED,
        ),
        (
            GIVEN_REFUSED,
            REFUND,
            Refund("order-1", "ch-1", AMOUNT, "refund:order-1:2"),
            Declined("too_late"),
            REFUND_FAILED_EVENT,
            RECEIVED,
        ),
    ],
)
def test_a_command_asks_the_gateway_and_its_answer_becomes_an_event(
    given: tuple[Step, ...],
    when: PaymentCommand,
    asked: Charge | Refund | None,
    answer: Outcome | None,
    then: PaymentEvent,
    status: str,
) -> None:
    history = History(*given)
    assert restate(history.payment, when) is None
    assert call_for(history.payment, when) == asked
    event = decide(history.payment, when, answer)
    assert event == then
    history.add(event)
    assert history.payment is not None
    assert history.payment.status == status


@pytest.mark.parametrize(
    ("given", "when", "then"),
    [
        (GIVEN_CHARGED, CHARGE, RECEIVED_EVENT),
        (GIVEN_CHARGED, CHARGE_MORE, RECEIVED_EVENT),
        (GIVEN_REFUSED, CHARGE, RECEIVED_EVENT),
        (GIVEN_DECLINED, CHARGE, FAILED_EVENT),
        (GIVEN_DECLINED, CHARGE_MORE, FAILED_EVENT),
        (GIVEN_DECLINED, REFUND, FAILED_EVENT),
        (GIVEN_REFUNDED, REFUND, REFUNDED_EVENT),
        (GIVEN_REFUNDED, CHARGE, REFUNDED_EVENT),
        (GIVEN_CANCELLED, CHARGE, CANCELLED_EVENT),
        (GIVEN_CANCELLED, REFUND, CANCELLED_EVENT),
    ],
)
def test_a_command_that_is_decided_already_is_told_how_the_payment_stands_and_asks_nobody(
    given: tuple[Step, ...], when: PaymentCommand, then: PaymentEvent
) -> None:
    payment = History(*given).payment
    assert restate(payment, when) == then
    assert call_for(payment, when) is None


@pytest.mark.parametrize(
    "amount",
    [
        *(("0", "USD"), ("-0.01", "USD"), ("100.50", "JPY"), ("0.005", "USD"), ("1" * 120, "USD")),
        *(("1", currency) for currency in ("usd", "US1", "ÄÖÜ", "US", "USDT", "XXX")),
    ],
)
def test_what_is_no_amount_fails_without_asking_the_gateway(amount: tuple[str, str]) -> None:
    money = Money(Decimal(amount[0]), amount[1])
    command = ChargePayment("order-1", "customer-1", money)
    assert call_for(None, command) is None
    assert decide(None, command, None) == PaymentFailed("order-1", "customer-1", money, "invalid_amount")


# ---- what a payment becomes


def test_a_payment_knows_its_times_its_references_and_why() -> None:
    received = Payment("order-1", "customer-1", RECEIVED, AMOUNT, "ch-1", None, 1, charged_at=START)
    assert History(*GIVEN_CHARGED).payment == received
    refused = msgspec.structs.replace(received, reason="too_late", refunds_refused=1, version=2)
    assert History(*GIVEN_REFUSED).payment == refused
    refunded = msgspec.structs.replace(
        refused,
        status=REFUNDED,
        reason=None,
        refund_reference="re-1",
        refunded_at=START + timedelta(minutes=2),
        version=3,
    )
    assert History(*GIVEN_REFUSED, (REFUND, REFUNDED_BY)).payment == refunded
    failed = Payment("order-1", "customer-1", FAILED, AMOUNT, None, "card_declined", 1, failed_at=START)
    assert History(*GIVEN_DECLINED).payment == failed
    cancelled = Payment("order-1", None, FAILED, None, None, "cancelled_before_charge", 1, failed_at=START)
    assert History(*GIVEN_CANCELLED).payment == cancelled


@pytest.mark.parametrize("given", [GIVEN_DECLINED, GIVEN_CANCELLED, (*GIVEN_REFUSED, (REFUND, REFUNDED_BY))])
def test_the_events_tell_the_whole_payment_also_as_bytes(given: tuple[Step, ...]) -> None:
    history, registry = History(*given), EventRegistry(PAYMENT_TYPES)
    again: Payment | None = None
    for event in history.events:
        again = evolve(again, registry.decode(registry.encode(event)))
    assert again == history.payment
    assert again is not None
    assert PAYMENTS.decode_row(PAYMENTS.encode_row(again)) == again


@pytest.mark.parametrize(
    ("given", "event"),
    [
        ((), REFUNDED_EVENT),
        ((), REFUND_FAILED_EVENT),
        (GIVEN_CHARGED, RECEIVED_EVENT),
        (GIVEN_CHARGED, FAILED_EVENT),
        (GIVEN_DECLINED, REFUNDED_EVENT),
        (GIVEN_DECLINED, REFUND_FAILED_EVENT),
        (GIVEN_REFUNDED, REFUNDED_EVENT),
        (GIVEN_REFUNDED, REFUND_FAILED_EVENT),
    ],
)
def test_an_event_that_cannot_follow_is_an_error(given: tuple[Step, ...], event: PaymentEvent) -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        History(*given).add(event)


def test_an_event_out_of_turn_is_an_error() -> None:
    history = History(*GIVEN_CHARGED)
    with pytest.raises(ValueError, match="expected event 2, got 1"):
        evolve(history.payment, history.events[0])


@pytest.mark.parametrize(
    ("given", "when", "answer"),
    [
        ((), CHARGE, None),
        ((), CHARGE, REFUNDED_BY),
        (GIVEN_CHARGED, REFUND, None),
        (GIVEN_CHARGED, REFUND, CHARGED),
    ],
)
def test_money_is_not_made_of_an_answer_to_something_else(
    given: tuple[Step, ...], when: PaymentCommand, answer: Outcome | None
) -> None:
    with pytest.raises(ValueError, match="the gateway was asked for"):
        decide(History(*given).payment, when, answer)


# ---- idempotency keys


@pytest.mark.parametrize("order_id", ["order-123", "536365", "550e8400-e29b-41d4-a716-446655440000", "A.b_c~"])
def test_ordinary_order_ids_are_their_own_key(order_id: str) -> None:
    call = call_for(None, ChargePayment(order_id, "customer-1", AMOUNT))
    assert call is not None
    assert call.key == order_id


def test_no_order_id_makes_a_charge_look_like_a_refund_of_another_order_or_breaks_a_header() -> None:
    ids = ["order-1", "refund:order-1:1", "refund%3Aorder-1%3A1", "line\r\nbreak", "line%0D%0Abreak", "ä", " ", "a/b"]
    keys = []
    for order_id in ids:
        for payment, command in (
            (None, ChargePayment(order_id, "customer-1", AMOUNT)),
            (Payment(order_id, "customer-1", RECEIVED, AMOUNT, "ch-1", None, 1), RefundPayment(order_id)),
        ):
            call = call_for(payment, command)
            assert call is not None
            keys.append(call.key)
    assert len(set(keys)) == 2 * len(ids)
    assert all(key.isascii() and key.isprintable() and " " not in key for key in keys)
