"""Places in lists of orders, newest first: bytes that sort as the list does, and that cursors are made of."""

import struct
from datetime import UTC, datetime, timedelta
from typing import Final

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NEWEST = 1 << 63
_AGE = struct.Struct(">Q")

PLACE_BYTES_MIN: Final = _AGE.size
"""The bytes of a place that are its time; those of the order's id follow."""


def encode_place(at: datetime, order_id: str = "") -> bytes:
    """The place of an order of this time; without an id, what comes before all orders of the time."""
    return _AGE.pack(_NEWEST - (at - _EPOCH) // _MICROSECOND) + order_id.encode()


def decode_place(place: bytes) -> datetime:
    """The time of a place; raises ValueError, OverflowError or struct.error for bytes that are none."""
    age: int = _AGE.unpack(place[:PLACE_BYTES_MIN])[0]
    return _EPOCH + (_NEWEST - age) * _MICROSECOND
