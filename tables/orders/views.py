"""The web view of orders."""

from typing import TypedDict

from aiohttp import web

from domain.orders import Order
from engine import Partition, Rendering, Service
from engine.web import (
    ENGINE,
    EventView,
    Operation,
    Problem,
    by_key,
    encode_json,
    event_views,
    json_answer,
    json_response,
)
from tables.orders import ORDERS
from tables.orders.queries import (
    ORDER_PATH,
    OrderView,
    is_shown,
    order_history,
    order_view,
)

service = Service("order-views")


def _order_answer(order: Order) -> bytes | None:
    return encode_json(order_view(order)) if is_shown(order) else None


ORDER_ANSWER = Rendering(ORDERS, _order_answer)


class OrderEvents(TypedDict):
    """The audit trail of an order."""

    order_id: str
    items: list[EventView]


@service.route("GET", "/orders/{order_id}", Operation({200: OrderView}, problems=(404,)))
@by_key("order_id", ORDER_PATH)
async def get_order(request: web.Request, task: Partition) -> web.StreamResponse:
    """One order; with `?after=TOKEN` never older than it. 404 when nothing was placed under the id."""
    order_id = request.match_info["order_id"]
    body = task.rendered(ORDER_ANSWER, order_id)
    if body is None:
        raise no_order(order_id)
    return json_answer(body)


@service.route("GET", "/orders/{order_id}/events", Operation({200: OrderEvents}, problems=(404,)))
@by_key("order_id", ORDER_PATH)
async def get_order_events(request: web.Request, task: Partition) -> web.StreamResponse:
    """The audit trail, `{order_id, items}`, oldest event first; refused commands are in it too."""
    order_id = request.match_info["order_id"]
    history = order_history(task, order_id)
    if not history:
        raise no_order(order_id)
    return json_response(OrderEvents(order_id=order_id, items=event_views(history, request.app[ENGINE].registry)))


def no_order(order_id: str) -> Problem:
    """A 404 for an order."""
    return Problem(404, f"there is no order {order_id}")
