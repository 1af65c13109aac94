"""The mails of each order, and what became of them: the table and its views."""

from __future__ import annotations

import struct
from typing import Final, Literal, NamedTuple, TypedDict

import msgspec
from aiohttp import web

from engine import KeyCodec, Partition, Service, Table, TimeText, encode_prefix, format_ms
from engine.web import Hop, Operation, Path, by_key, json_response
from streams.topics import NOTIFICATION_COMMANDS, ORDER_EVENTS
from tables.orders.queries import ORDER_PATH, find_order
from tables.orders.views import no_order


class NotificationKey(NamedTuple):
    """An order's mails are together."""

    order_id: str
    kind: str


class Notification(msgspec.Struct, frozen=True, gc=False):
    """One mail. `sent` ones have `sent_at_ms` (epoch, production time of the command), others `detail`: why not.

    `to` is the address as the customer gave it.
    """

    order_id: str
    kind: str
    to: str
    state: Literal["sent", "undeliverable"]
    message_id: str
    sent_at_ms: int | None
    detail: str | None


def _encode(key: NotificationKey) -> bytes:
    return encode_prefix(key.order_id) + key.kind.encode()


def _decode(raw: bytes) -> NotificationKey:
    start = 2 + struct.unpack(">H", raw[:2])[0]
    return NotificationKey(raw[2:start].decode(), raw[start:].decode())


NOTIFICATIONS: Table[NotificationKey, Notification] = Table(
    "notifications",
    Notification,
    KeyCodec(_encode, _decode),
    help="mails that were sent or cannot be, by order and kind",
)


# Mails of failed payments take another way, by payment-events: a token says nothing about them.
NOTIFICATIONS_PATH: Final[Path] = (
    *ORDER_PATH,
    Hop("request-order-notifications", ORDER_EVENTS),
    Hop("send-notifications", NOTIFICATION_COMMANDS),
)

service = Service("notification-views")


class NotificationView(msgspec.Struct, frozen=True, gc=False):
    """One mail, without the address; `sent_at` is production time, when it was asked for."""

    kind: str
    state: str
    message_id: str
    sent_at: TimeText | None
    detail: str | None


class NotificationList(TypedDict):
    """The mails of an order."""

    order_id: str
    items: list[NotificationView]


@service.route("GET", "/orders/{order_id}/notifications", Operation({200: NotificationList}, problems=(404,)))
@by_key("order_id", NOTIFICATIONS_PATH)
async def get_notifications(request: web.Request, task: Partition) -> web.StreamResponse:
    """The mails of an order, `{order_id, items}`, sorted by kind; one that still waits to be sent is not in it.

    With `?after=TOKEN` it waits until mails that follow from the command are sent. 404 for an unknown order.
    """
    order_id = request.match_info["order_id"]
    found = notifications_of(task, order_id)
    if not found and find_order(task, order_id) is None:
        raise no_order(order_id)
    return json_response(NotificationList(order_id=order_id, items=[_view(row) for row in found]))


def notifications_of(task: Partition, order_id: str) -> list[Notification]:
    """The mails of an order that are settled, sorted by kind."""
    return [row for _, row in task.scan(NOTIFICATIONS, encode_prefix(order_id))]


def _view(row: Notification) -> NotificationView:
    shown = None if row.sent_at_ms is None else format_ms(row.sent_at_ms)
    return NotificationView(row.kind, row.state, row.message_id, shown, row.detail)
