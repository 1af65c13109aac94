"""The mails of each order: what became of them."""

import struct
from typing import Literal, NamedTuple

import msgspec

from engine.declare.table import KeyCodec, Table, encode_prefix


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
