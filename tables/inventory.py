"""The tables of stock: what there is of each product, who has reserved of it, and the commands that took effect."""

import struct
from typing import Final, Literal, NamedTuple

import msgspec

from engine.declare.table import KeyCodec, Table, encode_prefix

ReservationState = Literal["reserved", "released", "shipped", "failed"]

RESERVED: Final = "reserved"
RELEASED: Final = "released"
"""Holds no pieces and never will again; also a line that was released before it was reserved (a tombstone)."""
SHIPPED: Final = "shipped"
FAILED: Final = "failed"


class Stock(msgspec.Struct, frozen=True, gc=False):
    """One product, in pieces; `on_hand` includes the reserved ones, `version` is the number of its events so far.

    `stocked` tells whether anybody ever said what there is: before that commands were only refused.
    """

    product_id: str
    on_hand: int = 0
    reserved: int = 0
    version: int = 0
    stocked: bool = False


class ReservationKey(NamedTuple):
    """Sorted by product, then order, then line (from 1 on)."""

    product_id: str
    order_id: str
    line: int


class Reservation(msgspec.Struct, frozen=True, gc=False):
    """What one line of an order has of a product.

    `quantity` is the pieces that were reserved, 0 where none ever were. `requested` and `available` are the pieces
    asked for and those that were free then. `reason` is the stable code why reserving failed, or why a shipped line
    could not be released.
    """

    state: ReservationState
    quantity: int
    requested: int = 0
    available: int = 0
    reason: str | None = None


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
