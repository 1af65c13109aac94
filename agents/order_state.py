"""The order as it was: its state rebuilt from the audit trail."""

from datetime import datetime

from aiohttp import web

from agents.domain.orders import replay
from streams.freshness import catch_up
from streams.routing import ROUTER, partition_of, task_here
from streams.service import Service
from streams.web import ENGINE, Problem, int_parameter, invalid, json_response
from tables.orders import UNKNOWN
from tables.queries import ORDER_PATH, order_history, order_view

service = Service("order-state")


@service.route("GET", "/orders/{order_id}/state")
async def get_order_state(request: web.Request) -> web.StreamResponse:
    """The order after its event number `?version=`, or at `?at=TIME`, in the shape of `GET /orders/{id}`.

    `at` is business time: what counts is the history up to its first event with a later one. 404 when there was no
    order then, or not so many events.
    """
    order_id = request.match_info["order_id"]
    number = partition_of(request, order_id)
    if ("version" in request.query) == ("at" in request.query):
        raise invalid("version", "give either version or at")
    version = int_parameter(request, "version", 0, 1, 2**63 - 1)
    at = _time(request.query["at"]) if "at" in request.query else None
    if task_here(request, number) is None:
        return await request.app[ROUTER].forward(request, number)
    await catch_up(request, ORDER_PATH, number)
    engine = request.app[ENGINE]
    history = [engine.registry.decode(value) for value in order_history(engine.task(number), order_id)]
    if at is None:
        past = history[:version] if version <= len(history) else []
    else:
        later = next((index for index, event in enumerate(history) if event.timestamp > at), len(history))
        past = history[:later]
    order = replay(past)
    if order is None or order.status == UNKNOWN:
        raise Problem(404, f"there was no order {order_id} at that point")
    return json_response(order_view(order))


def _time(text: str) -> datetime:
    try:
        # A plus sign in a query is a space, unless it is encoded.
        time = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as error:
        raise invalid("at", "a time such as 2026-11-23T10:00:00Z") from error
    if time.utcoffset() is None:
        raise invalid("at", "a time with its zone, such as 2026-11-23T10:00:00Z")
    return time
