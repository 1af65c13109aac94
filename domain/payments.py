"""The payment of an order: what to ask the gateway, what its answer means, and what the payment becomes."""

from datetime import datetime
from typing import Any, Final, Literal
from urllib.parse import quote

import msgspec
from msgspec import UNSET
from msgspec.structs import replace

from domain.prices import price_problem
from engine import Envelope
from streams.events.money import Money
from streams.events.payment_answers import Charged, Declined, Refunded
from streams.events.payments import (
    ChargePayment,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    PaymentRefundFailed,
    RefundPayment,
)

PaymentStatus = Literal["received", "failed", "refunded"]

RECEIVED: Final = "received"
FAILED: Final = "failed"
"""No money was taken, and none will be."""
REFUNDED: Final = "refunded"


class Payment(msgspec.Struct, frozen=True, gc=False):
    """The payment of one order.

    A `failed` one has no reference, and no customer and amount either when a refund was asked for before any charge.
    `reason` says why it failed, or why the last refund of a `received` one was refused; `refunds_refused` counts those.
    `reference` and `refund_reference` are the gateway's. `version` is the number of events so far. Times are business
    time, aware UTC.
    """

    order_id: str
    customer_id: str | None
    status: PaymentStatus
    amount: Money | None
    reference: str | None
    reason: str | None
    version: int
    refund_reference: str | None = None
    refunds_refused: int = 0
    charged_at: datetime | None = None
    failed_at: datetime | None = None
    refunded_at: datetime | None = None


PaymentCommand = ChargePayment | RefundPayment
PaymentEvent = PaymentReceived | PaymentFailed | PaymentRefunded | PaymentRefundFailed
Outcome = Charged | Refunded | Declined

INVALID_AMOUNT: Final = "invalid_amount"
CANCELLED_BEFORE_CHARGE: Final = "cancelled_before_charge"
"""Nothing was charged because the order was cancelled before."""


class Charge(msgspec.Struct, frozen=True, gc=False):
    """Ask the gateway for the money of an order, under an idempotency key."""

    order_id: str
    customer_id: str
    amount: Money
    key: str


class Refund(msgspec.Struct, frozen=True, gc=False):
    """Ask the gateway to give back what it took as `reference`, under an idempotency key."""

    order_id: str
    reference: str
    amount: Money
    key: str


def call_for(
    payment: Payment | None, command: PaymentCommand, price_decimals: int | None = None
) -> Charge | Refund | None:
    """Return what the gateway has to be asked before a command can be decided, None where nothing.

    `price_decimals` is how many decimals an amount may have where its currency has fewer.

    The same payment and command give the same call under the same key, so that it may be made again after a crash.
    """
    if payment is None:
        if isinstance(command, ChargePayment) and price_problem(command.amount, price_decimals) is None:
            return Charge(command.order_id, command.customer_id, command.amount, _key(command.order_id))
    elif isinstance(command, RefundPayment) and payment.status == RECEIVED:
        _, amount, reference = _taken(payment)
        # A refused refund that is asked for again is a new request: under the old key it would be refused unread.
        key = f"refund:{_key(payment.order_id)}:{payment.refunds_refused + 1}"
        return Refund(payment.order_id, reference, amount, key)
    return None


def restate(payment: Payment | None, command: PaymentCommand) -> PaymentEvent | None:
    """Return the event that tells again how a payment stands, where a command cannot change it; None where it can.

    There is one charge per order: once it was asked for, or a refund was, it is not asked for again.
    """
    if payment is None:
        return None
    if payment.status == FAILED:
        return PaymentFailed(payment.order_id, payment.customer_id, payment.amount, payment.reason or "")
    customer_id, amount, reference = _taken(payment)
    if payment.status == REFUNDED:
        return PaymentRefunded(payment.order_id, customer_id, amount, payment.refund_reference or "")
    if isinstance(command, ChargePayment):
        return PaymentReceived(payment.order_id, customer_id, amount, reference)
    return None


def decide(
    payment: Payment | None, command: PaymentCommand, outcome: Outcome | None, price_decimals: int | None = None
) -> PaymentEvent:
    """Return the event that follows from a command that `restate` does not answer.

    `outcome` is what the call of `call_for` returned, None where there was none. Raises ValueError when it does not fit
    the command.
    """
    if isinstance(command, ChargePayment):
        return _charged(command, outcome, price_decimals)
    if payment is None:
        return PaymentFailed(command.order_id, None, None, CANCELLED_BEFORE_CHARGE)
    customer_id, amount, _ = _taken(payment)
    if isinstance(outcome, Refunded):
        return PaymentRefunded(command.order_id, customer_id, amount, outcome.reference)
    if isinstance(outcome, Declined):
        return PaymentRefundFailed(command.order_id, customer_id, amount, outcome.reason)
    raise ValueError(f"the gateway was asked for a refund of order {command.order_id} and answered {outcome}")


def evolve(payment: Payment | None, event: Envelope[Any]) -> Payment:
    """Return the payment after an event; one that does not say its aggregate version counts as the next.

    Raises ValueError when the event is not the next one of the payment's history, or cannot follow it.
    """
    version = payment.version + 1 if payment is not None else 1
    if event.aggregate_version != version and event.aggregate_version is not UNSET:
        raise ValueError(
            f"payment of order {event.aggregate_id}: expected event {version}, got {event.aggregate_version}"
        )
    match event.payload:
        case PaymentReceived() | PaymentFailed() if payment is None:
            return _first(event.payload, event)
        case PaymentRefunded(reference=reference) if payment is not None and payment.status == RECEIVED:
            refunded = replace(payment, status=REFUNDED, refund_reference=reference, reason=None)
            return replace(refunded, refunded_at=event.timestamp, version=version)
        case PaymentRefundFailed(reason=reason) if payment is not None and payment.status == RECEIVED:
            return replace(payment, reason=reason, refunds_refused=payment.refunds_refused + 1, version=version)
    status = "nothing" if payment is None else payment.status
    raise ValueError(f"payment of order {event.aggregate_id}: {event.event_type} cannot follow {status}")


def _charged(
    command: ChargePayment, outcome: Outcome | None, price_decimals: int | None
) -> PaymentReceived | PaymentFailed:
    order_id, customer_id, amount = command.order_id, command.customer_id, command.amount
    if price_problem(amount, price_decimals) is not None:
        return PaymentFailed(order_id, customer_id, amount, INVALID_AMOUNT)
    if isinstance(outcome, Charged):
        return PaymentReceived(order_id, customer_id, amount, outcome.reference)
    if isinstance(outcome, Declined):
        return PaymentFailed(order_id, customer_id, amount, outcome.reason)
    raise ValueError(f"the gateway was asked for the money of order {order_id} and answered {outcome}")


def _first(payload: PaymentReceived | PaymentFailed, event: Envelope[Any]) -> Payment:
    if isinstance(payload, PaymentReceived):
        return Payment(
            payload.order_id,
            payload.customer_id,
            RECEIVED,
            payload.amount,
            payload.reference,
            None,
            1,
            charged_at=event.timestamp,
        )
    return Payment(
        payload.order_id,
        payload.customer_id,
        FAILED,
        payload.amount,
        None,
        payload.reason,
        1,
        failed_at=event.timestamp,
    )


def _key(order_id: str) -> str:
    """The order id as one part of an idempotency key: ordinary ids stay as they are.

    A key is an HTTP header, and an id may hold any character. With `:` encoded no id can make a charge look like a
    refund of another order.
    """
    return quote(order_id, safe="")


def _taken(payment: Payment) -> tuple[str, Money, str]:
    """Customer, amount and reference of money that was taken."""
    if payment.customer_id is None or payment.amount is None or payment.reference is None:
        raise ValueError(f"payment of order {payment.order_id}: {payment.status}, but no money was taken")
    return payment.customer_id, payment.amount, payment.reference
