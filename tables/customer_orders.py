"""The orders of each customer, newest first."""

import struct
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import msgspec

from streams.engine.table import KeyCodec, Table, encode_prefix
from streams.events.money import Money

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NEWEST = 1 << 63


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
    age = _NEWEST - (key.created_at - _EPOCH) // _MICROSECOND
    return encode_prefix(key.customer_id) + struct.pack(">Q", age) + key.order_id.encode()


def _decode(raw: bytes) -> CustomerOrderKey:
    start = 2 + struct.unpack(">H", raw[:2])[0]
    micros = _NEWEST - struct.unpack(">Q", raw[start : start + 8])[0]
    return CustomerOrderKey(raw[2:start].decode(), _EPOCH + micros * _MICROSECOND, raw[start + 8 :].decode())


CUSTOMER_ORDERS: Table[CustomerOrderKey, CustomerOrder] = Table(
    "customer-orders", CustomerOrder, KeyCodec(_encode, _decode), help="each customer's orders, newest first"
)
