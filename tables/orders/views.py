"""The web view of orders, and what workers ask each other."""

from typing import TypedDict

from aiohttp import web

from domain.orders import Order
from engine import Partition, Rendering, Service
from engine.web import (
    ENGINE,
    TIMEOUT_S,
    EventView,
    Operation,
    Problem,
    Wanted,
    by_key,
    duration_parameter,
    encode_json,
    event_views,
    int_parameter,
    json_answer,
    json_response,
    wait_here,
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


@service.route("GET", "/internal/positions/{topic}/{number}")
async def wait_for_position(request: web.Request) -> web.StreamResponse:
    """For other workers: answers when `agent` has passed `offset`, 504 with the lag after `timeout`."""
    topic, agent = request.match_info["topic"], request.query.get("agent", "")
    offset = int_parameter(request, "offset", 0, 0, 2**63 - 1)
    timeout_s = duration_parameter(request, "timeout", TIMEOUT_S)
    engine = request.app[ENGINE]
    if agent not in engine.agents_of(topic) or not request.match_info["number"].isdecimal():
        raise Problem(404, f"there is no agent {agent} of {topic}")
    task = engine.task(int(request.match_info["number"]))
    key = request.query["key"].encode() if "key" in request.query else None
    mark = int_parameter(request, "mark", 0, 0, 2**32 - 1) if "mark" in request.query else None
    await wait_here(task, agent, topic, Wanted(offset, "exact" in request.query, key, mark), timeout_s)
    return json_response({"reached": task.reached(agent, topic)})


def no_order(order_id: str) -> Problem:
    """A 404 for an order."""
    return Problem(404, f"there is no order {order_id}")
