"""What customers are told by mail: pure."""

from domain.orders import Order
from domain.payments import CANCELLED_BEFORE_CHARGE
from streams.events.notifications import NotificationKind, SendNotification
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderPlaced
from streams.events.payments import PaymentFailed


def notification_of_order(
    event: OrderPlaced | OrderConfirmed | OrderCancelled, order: Order | None
) -> SendNotification | None:
    """The mail that follows from an event of an order as it is now; None for a customer without an address."""
    match event:
        case OrderPlaced():
            if not event.email:
                return None
            return SendNotification(
                event.order_id, "order_placed", event.email, event.customer_id, event.items, event.total
            )
        case OrderConfirmed():
            return _about(order, "order_confirmed", None)
        case OrderCancelled():
            return _about(order, "order_cancelled", event.reason)


def notification_of_payment(event: PaymentFailed, order: Order | None) -> SendNotification | None:
    """The mail that follows from a failed payment; None where the customer knows already or has no address."""
    if event.reason == CANCELLED_BEFORE_CHARGE:  # the customer is told of the cancellation alone
        return None
    return _about(order, "payment_failed", event.reason)


def _about(order: Order | None, kind: NotificationKind, reason: str | None) -> SendNotification | None:
    if order is None or not order.email or order.customer_id is None or order.total is None:
        return None
    return SendNotification(order.order_id, kind, order.email, order.customer_id, order.items, order.total, reason)
