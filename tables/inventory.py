"""The tables of stock: what there is of each product, who has reserved of it, and the commands that took effect."""

import struct
from typing import NamedTuple

import msgspec

from domain.inventory import Reservation, Stock
from engine.declare.table import KeyCodec, Table, encode_prefix


class ReservationKey(NamedTuple):
    """Sorted by product, then order, then line (from 1 on)."""

    product_id: str
    order_id: str
    line: int


class HandledStockCommand(msgspec.Struct, frozen=True, gc=False):
    """The mark that a command took effect or was refused, at `marked_at_ms` (epoch, production time).

    `refused` says why it was refused, as a stable code and a sentence; None when it took effect.
    """

    product_id: str
    marked_at_ms: int
    refused: tuple[str, str] | None = None


def _encode(key: ReservationKey) -> bytes:
    return encode_prefix(key.product_id) + encode_prefix(key.order_id) + struct.pack(">I", key.line)


def _decode(raw: bytes) -> ReservationKey:
    start = 2 + struct.unpack(">H", raw[:2])[0]
    return ReservationKey(raw[2:start].decode(), raw[start + 2 : -4].decode(), struct.unpack(">I", raw[-4:])[0])


STOCK: Table[str, Stock] = Table("stock", Stock, help="what there is of every product, by product id")

RESERVATIONS: Table[ReservationKey, Reservation] = Table(
    "reservations",
    Reservation,
    KeyCodec(_encode, _decode),
    help="what each line of an order has of a product, by product, order and line",
)

HANDLED_STOCK_COMMANDS: Table[str, HandledStockCommand] = Table(
    "handled-stock-commands",
    HandledStockCommand,
    help="ids of stock commands that took effect or were refused, so that a repeated one does nothing",
    marked_at_ms=lambda row: row.marked_at_ms,
    cached=False,
)
