"""The order as it was: its state rebuilt from the audit trail."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from aiohttp import web

from domain.orders import UNKNOWN, Order, replay
from engine import Envelope, Partition, Service
from engine.web import ENGINE, Operation, Parameter, Problem, by_key, invalid, json_response, optional_number, time_of
from tables.orders.queries import ORDER_PATH, OrderView, order_history, order_view

service = Service("order-state")


VERSION = optional_number("version", "after the order's event of this number; give either this or `at`", 1)
AT = Parameter("at", "at this time; give either this or `version`", {"type": "string", "format": "date-time"})


@service.route("GET", "/orders/{order_id}/state", Operation({200: OrderView}, (VERSION, AT), problems=(404,)))
@by_key("order_id", ORDER_PATH)
async def get_order_state(request: web.Request, task: Partition) -> web.StreamResponse:
    """The order after its event number `?version=`, or at `?at=TIME`, in the shape of `GET /orders/{id}`.

    `at` is business time: what counts is the history up to its first event with a later one. 404 when there was no
    order then, or not so many events.
    """
    order_id = request.match_info["order_id"]
    if (VERSION.name in request.query) == (AT.name in request.query):
        raise invalid(VERSION.name, "give either version or at")
    version = VERSION.read(request)
    decode = request.app[ENGINE].registry.decode
    history = [decode(value) for value in order_history(task, order_id)]
    if version is not None:
        order = order_after(history, version)
    else:
        order = order_at(history, time_of(AT.name, request.query[AT.name]))
    if order is None:
        raise Problem(404, f"there was no order {order_id} at that point")
    return json_response(order_view(order))


def order_after(history: Sequence[Envelope[Any]], version: int) -> Order | None:
    """The order after its first `version` events; None where there are not so many, or nothing was placed by then."""
    return _replayed(history[:version]) if version <= len(history) else None


def order_at(history: Sequence[Envelope[Any]], at: datetime) -> Order | None:
    """The order before its first event of a later business time; None where nothing was placed by then."""
    later = next((index for index, event in enumerate(history) if event.timestamp > at), len(history))
    return _replayed(history[:later])


def _replayed(past: Sequence[Envelope[Any]]) -> Order | None:
    order = replay(past)
    return None if order is None or order.status == UNKNOWN else order
