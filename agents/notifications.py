"""The notification service: tells customers by mail what happened to their orders, once per order and kind."""

import logging
from collections.abc import Coroutine
from typing import Any

from domain.notifications import notification_of_order, notification_of_payment
from engine import Envelope, Quiet, Service, UnitOfWork, about, follow_up
from streams.events.notifications import NOTIFICATION_TYPES, SendNotification
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderPlaced
from streams.events.payments import PAYMENT_TYPES, PaymentFailed
from streams.mail.address import InvalidAddress, Mailbox, parse_address, parse_sender
from streams.mail.delivery import Mailer, open_mailer
from streams.mail.message import message_id, render
from streams.mail.outcome import Delivery
from streams.settings import shop_settings
from streams.topics import NOTIFICATION_COMMANDS, ORDER_EVENTS, PAYMENT_EVENTS
from tables.notifications import NOTIFICATIONS, Notification, NotificationKey
from tables.orders import ORDERS

service = Service(
    "notifications",
    tables=(NOTIFICATIONS,),
    topics=(NOTIFICATION_COMMANDS,),
    types=(*NOTIFICATION_TYPES, *PAYMENT_TYPES),
)

log = logging.getLogger(__name__)
_quiet = Quiet()


order_events = service.agent(
    "request-order-notifications",
    ORDER_EVENTS,
    help="Ask for the mails that follow from events of orders.",
    deferred=True,
)
payment_events = service.agent(
    "request-payment-notifications",
    PAYMENT_EVENTS,
    help="Ask for the mails that follow from failed payments.",
    deferred=True,
)
commands = service.agent(
    "send-notifications", NOTIFICATION_COMMANDS, help="Send mail, and keep what became of it.", opens=open_mailer
)


@order_events.on(OrderPlaced, OrderConfirmed, OrderCancelled)
def ask_after_order(event: Envelope[OrderPlaced | OrderConfirmed | OrderCancelled], work: UnitOfWork) -> None:
    """Ask for the mail that follows from an event of an order."""
    _ask(event, notification_of_order(event.payload, work.get(ORDERS, event.aggregate_id)), work)


@payment_events.on(PaymentFailed)
def ask_after_payment(event: Envelope[PaymentFailed], work: UnitOfWork) -> None:
    """Ask for the mail that follows from a failed payment."""
    _ask(event, notification_of_payment(event.payload, work.get(ORDERS, event.aggregate_id)), work)


def _ask(event: Envelope[Any], notification: SendNotification | None, work: UnitOfWork) -> None:
    if notification is not None:
        command = follow_up(event, notification, step="notification", aggregate_id=event.aggregate_id)
        work.send(NOTIFICATION_COMMANDS, event.aggregate_id, command)


@commands.call
def call_for(
    mailer: Mailer, command: Envelope[SendNotification], work: UnitOfWork
) -> Coroutine[Any, Any, Delivery] | None:
    """The call that sends a mail, None for one that is settled or has an address that no mail can go to."""
    if work.get(NOTIFICATIONS, _key(command.payload)) is not None:
        return None
    try:
        to = parse_address(command.payload.email)
    except InvalidAddress:
        return None
    return _deliver(command, to, mailer, parse_sender(shop_settings(work.settings).mail_from))


async def _deliver(command: Envelope[SendNotification], to: Mailbox, mailer: Mailer, sender: Mailbox) -> Delivery:
    return await mailer.deliver(render(command, to, sender))


def _without_call(notification: SendNotification, work: UnitOfWork) -> Delivery | None:
    """What became of a mail for which there was no call, None where that is settled already."""
    if work.get(NOTIFICATIONS, _key(notification)) is not None:
        return None
    try:
        parse_address(notification.email)
    except InvalidAddress as error:
        return Delivery("undeliverable", f"the address {error}")
    return None


@commands.on(SendNotification)
def keep_outcome(command: Envelope[SendNotification], work: UnitOfWork) -> None:
    """Keep what became of a mail."""
    notification = command.payload
    delivery: Delivery | None = work.outcome or _without_call(notification, work)
    if delivery is None:
        return
    row = Notification(
        notification.order_id,
        notification.kind,
        notification.email,
        delivery.state,
        message_id(notification.order_id, notification.kind, parse_sender(shop_settings(work.settings).mail_from)),
        work.record.timestamp_ms if delivery.state == "sent" else None,
        delivery.detail,
    )
    work.put(NOTIFICATIONS, _key(notification), row)
    if delivery.state == "undeliverable":
        _say_undeliverable(notification)


def _say_undeliverable(notification: SendNotification) -> None:
    """Say that a customer is not told; of many, only some. Why is not for the log: it may repeat the address."""
    suppressed = _quiet.may_speak(notification.kind)
    if suppressed is not None:
        log.warning(
            "the mail %s of an order is undeliverable: GET /orders/ORDER/notifications says why%s",
            notification.kind,
            f" (and {suppressed:,} alike before)" if suppressed else "",
            extra=about(order_id=notification.order_id),
        )


def _key(notification: SendNotification) -> NotificationKey:
    return NotificationKey(notification.order_id, notification.kind)
