"""Where orders are found by other things than their ids: all of a partition newest first, and those of a correlation.

Rows are written once, when something begins, and say nothing of the order as it is: that is in its own row, in the same
partition. So what becomes of an order costs the index nothing, and its place in a list never changes.
"""

import struct
from datetime import datetime
from typing import NamedTuple

import msgspec

from engine import KeyCodec, Table, encode_prefix
from tables.orders.places import PLACE_BYTES_MIN, decode_place, encode_place


class PlacedOrder(NamedTuple):
    """Sorted newest first; `at` is business time: when the order was placed, or placing it was refused."""

    at: datetime
    order_id: str


class CorrelatedOrder(NamedTuple):
    """Sorted by correlation, then order."""

    correlation_id: str
    order_id: str


class Entry(msgspec.Struct, frozen=True, gc=False):
    """All that an index has to say is in its key."""


def _decode_placed(raw: bytes) -> PlacedOrder:
    return PlacedOrder(decode_place(raw), raw[PLACE_BYTES_MIN:].decode())


def _encode_correlated(key: CorrelatedOrder) -> bytes:
    return encode_prefix(key.correlation_id) + key.order_id.encode()


def _decode_correlated(raw: bytes) -> CorrelatedOrder:
    start = 2 + struct.unpack(">H", raw[:2])[0]
    return CorrelatedOrder(raw[2:start].decode(), raw[start:].decode())


ORDERS_BY_TIME: Table[PlacedOrder, Entry] = Table(
    "orders-by-time",
    Entry,
    KeyCodec(lambda key: encode_place(*key), _decode_placed),
    help="every order, newest first, by business time and order id",
    cached=False,
)

ORDERS_BY_CORRELATION: Table[CorrelatedOrder, Entry] = Table(
    "orders-by-correlation",
    Entry,
    KeyCodec(_encode_correlated, _decode_correlated),
    help="the orders that belong to a correlation id",
)
