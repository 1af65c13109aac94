"""The table of payments."""

from datetime import datetime
from typing import Final, Literal

import msgspec

from engine.declare.table import Table
from streams.events.money import Money

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


PAYMENTS: Table[str, Payment] = Table("payments", Payment, help="the payment of every order, by order id")
