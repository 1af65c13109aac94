"""Payments: the table and its views."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Final

import msgspec
from aiohttp import web

from domain.orders import PENDING
from domain.payments import Payment
from engine import Partition, Service, Table, TimeText, format_timestamp
from engine.web import Hop, Operation, Path, Problem, by_key, json_response
from streams.events.money import Money
from streams.topics import PAYMENT_COMMANDS
from tables.orders.queries import ORDER_PATH, find_order

PAYMENTS: Table[str, Payment] = Table("payments", Payment, help="the payment of every order, by order id")


# The saga of an order asks for its payment where the order is decided.
PAYMENT_PATH: Final[Path] = (*ORDER_PATH, Hop("decide-payments", PAYMENT_COMMANDS))

PaymentStatusText = Annotated[
    str, msgspec.Meta(extra_json_schema={"enum": ["pending", "received", "failed", "refunded"]})
]

service = Service("payment-views")


class PaymentView(msgspec.Struct, frozen=True, gc=False):
    """A payment; times are business time as in the envelope. One that is still to come is `pending`, version 0."""

    order_id: str
    customer_id: str | None
    status: PaymentStatusText
    amount: Money | None
    reference: str | None
    reason: str | None
    refund_reference: str | None
    charged_at: TimeText | None
    failed_at: TimeText | None
    refunded_at: TimeText | None
    version: int


@service.route("GET", "/payments/{order_id}", Operation({200: PaymentView}, problems=(404,)))
@by_key("order_id", PAYMENT_PATH)
async def get_payment(request: web.Request, task: Partition) -> web.StreamResponse:
    """The payment of an order; with `?after=TOKEN` never older than it. 404 when there is none and none will come."""
    order_id = request.match_info["order_id"]
    view = find_payment(task, order_id)
    if view is None:
        raise Problem(404, f"there is no payment of order {order_id}")
    return json_response(view)


def find_payment(task: Partition, order_id: str) -> PaymentView | None:
    """The payment of an order, `pending` while the order is and nothing is decided; None when there is none."""
    payment = task.read(PAYMENTS, order_id)
    if payment is not None:
        return payment_view(payment)
    order = find_order(task, order_id)
    if order is None or order.status != PENDING:
        return None
    return PaymentView(order_id, order.customer_id, PENDING, order.total, None, None, None, None, None, None, 0)


def payment_view(payment: Payment) -> PaymentView:
    """A payment as the web view shows it."""
    return PaymentView(
        payment.order_id,
        payment.customer_id,
        payment.status,
        payment.amount,
        payment.reference,
        payment.reason,
        payment.refund_reference,
        _time(payment.charged_at),
        _time(payment.failed_at),
        _time(payment.refunded_at),
        payment.version,
    )


def _time(time: datetime | None) -> str | None:
    return None if time is None else format_timestamp(time)
