"""The orders of each customer, newest first."""

import struct
from datetime import datetime
from typing import NamedTuple

import msgspec

from engine import KeyCodec, Table, encode_prefix
from streams.events.money import Money
from tables.orders.places import PLACE_BYTES_MIN, decode_place, encode_place


class CustomerOrderKey(NamedTuple):
    """Sorted by customer, then newest first; `created_at` is business time."""

    customer_id: str
    created_at: datetime
    order_id: str


class CustomerOrder(msgspec.Struct, frozen=True, gc=False):
    """One line in a customer's list of orders."""

    order_id: str
    customer_id: str
    status: str
    item_count: int
    total: Money
    created_at: datetime
    confirmed_at: datetime | None
    cancelled_at: datetime | None
    version: int


def _encode(key: CustomerOrderKey) -> bytes:
    return encode_prefix(key.customer_id) + encode_place(key.created_at, key.order_id)


def _decode(raw: bytes) -> CustomerOrderKey:
    start = 2 + struct.unpack(">H", raw[:2])[0]
    place = raw[start:]
    return CustomerOrderKey(raw[2:start].decode(), decode_place(place), place[PLACE_BYTES_MIN:].decode())


CUSTOMER_ORDERS: Table[CustomerOrderKey, CustomerOrder] = Table(
    "customer-orders", CustomerOrder, KeyCodec(_encode, _decode), help="each customer's orders, newest first"
)
