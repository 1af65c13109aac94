"""The web view of stock."""

from __future__ import annotations

from typing import Final

import msgspec
from aiohttp import web

from domain.inventory import Stock
from engine.declare.operation import Operation
from engine.declare.partition import Partition
from engine.declare.service import Service
from engine.web.answers import Problem, json_response
from engine.web.freshness import Hop, Path, by_key
from streams.topics import INVENTORY_COMMANDS
from tables.inventory import STOCK
from tables.queries import ORDER_PATH

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
