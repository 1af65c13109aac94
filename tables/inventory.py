"""Stock: what there is of each product, who has reserved of it, and the commands that took effect; and its views."""

from __future__ import annotations

import struct
from typing import Final, NamedTuple

import msgspec
from aiohttp import web

from domain.inventory import Reservation, Stock
from engine import KeyCodec, Partition, Service, Table, encode_prefix
from engine.web import Hop, Operation, Path, Problem, by_key, json_response
from streams.topics import INVENTORY_COMMANDS
from tables.orders.queries import ORDER_PATH


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


# What an order asks of stock is sent where the order is decided, so that tokens of orders lead here too.
INVENTORY_PATH: Final[Path] = (*ORDER_PATH, Hop("decide-stock", INVENTORY_COMMANDS))

service = Service("inventory-views")


class InventoryView(msgspec.Struct, frozen=True, gc=False):
    """The pieces of a product; `available` ones are on hand and not reserved."""

    product_id: str
    on_hand: int
    reserved: int
    available: int
    version: int


def inventory_view(stock: Stock) -> InventoryView:
    """A product's stock as the web view shows it."""
    available = stock.on_hand - stock.reserved
    return InventoryView(stock.product_id, stock.on_hand, stock.reserved, available, stock.version)


def find_stock(task: Partition, product_id: str) -> Stock | None:
    """The stock of a product, None when nobody ever said what there is of it."""
    stock = task.read(STOCK, product_id)
    return stock if stock is not None and stock.stocked else None


@service.route("GET", "/inventory/{product_id}", Operation({200: InventoryView}, problems=(404,)))
@by_key("product_id", INVENTORY_PATH)
async def get_inventory(request: web.Request, task: Partition) -> web.StreamResponse:
    """What there is of a product; with `?after=TOKEN` never older than it, be it of stock or of an order.

    404 when nobody ever said what there is of it.
    """
    product_id = request.match_info["product_id"]
    stock = find_stock(task, product_id)
    if stock is None:
        raise Problem(404, f"there is no product {product_id} in stock")
    return json_response(inventory_view(stock))
