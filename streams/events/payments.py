"""Commands and events of payments."""

from typing import ClassVar

from engine import Id, Message
from streams.events.money import Money, is_plain


class PaymentMessage(Message, frozen=True, gc=False):
    """What all commands and events of payments have in common."""

    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "Payment"


class ChargePayment(PaymentMessage, frozen=True, gc=False):
    """Take the money of an order; one charge per order, however often it is asked for."""

    event_type: ClassVar[str] = "payment.charge"
    aggregate_id_field: ClassVar[str | None] = "order_id"

    order_id: Id
    customer_id: Id
    amount: Money

    def __post_init__(self) -> None:
        """Refuse an amount that is no plain decimal (`NaN`, `1E+5`): commands come from any client."""
        if not is_plain(self.amount.amount):
            raise ValueError("not a plain decimal - at `$.amount.amount`")


class RefundPayment(PaymentMessage, frozen=True, gc=False):
    """Give the money of an order back; an order that was never charged then never will be."""

    event_type: ClassVar[str] = "payment.refund"
    aggregate_id_field: ClassVar[str | None] = "order_id"

    order_id: Id
    reason: str | None = None


class PaymentReceived(PaymentMessage, frozen=True, gc=False):
    """The money is here; `reference` is the gateway's."""

    event_type: ClassVar[str] = "payment.received"

    order_id: Id
    customer_id: Id
    amount: Money
    reference: str


class PaymentFailed(PaymentMessage, frozen=True, gc=False):
    """No money was taken, and none will be: `reason` is a stable snake_case code.

    `customer_id` and `amount` are null when a refund was asked for before any charge.
    """

    event_type: ClassVar[str] = "payment.failed"

    order_id: Id
    customer_id: Id | None
    amount: Money | None
    reason: str


class PaymentRefunded(PaymentMessage, frozen=True, gc=False):
    """The money was given back; `reference` is the gateway's for the refund."""

    event_type: ClassVar[str] = "payment.refunded"

    order_id: Id
    customer_id: Id
    amount: Money
    reference: str


class PaymentRefundFailed(PaymentMessage, frozen=True, gc=False):
    """The gateway refused to give the money back: `reason` is a stable snake_case code."""

    event_type: ClassVar[str] = "payment.refund_failed"

    order_id: Id
    customer_id: Id
    amount: Money
    reason: str


PAYMENT_COMMAND_TYPES: tuple[type[PaymentMessage], ...] = (ChargePayment, RefundPayment)
PAYMENT_EVENT_TYPES: tuple[type[PaymentMessage], ...] = (
    PaymentReceived,
    PaymentFailed,
    PaymentRefunded,
    PaymentRefundFailed,
)
PAYMENT_TYPES: tuple[type[PaymentMessage], ...] = (*PAYMENT_COMMAND_TYPES, *PAYMENT_EVENT_TYPES)
