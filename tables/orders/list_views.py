"""The web view of lists of orders: of one customer, and of all partitions, whoever owns them."""

from __future__ import annotations

import re
import struct
from datetime import UTC, date, datetime, time, timedelta
from typing import Final

import msgspec
from aiohttp import web

from domain.orders import CANCELLED, CONFIRMED, PENDING, REJECTED
from engine import Partition, Service
from engine.web import (
    CURSOR,
    FRESHNESS,
    LIMIT,
    Engine,
    InvalidCursor,
    Operation,
    Parameter,
    ask_all,
    by_key,
    catch_up,
    decode_cursor,
    encode_cursor,
    invalid,
    json_response,
    time_of,
)
from tables.orders.lists import OrderPage, OrderQuery, customer_page, merged, partition_page
from tables.orders.places import PLACE_BYTES_MIN, decode_place
from tables.orders.queries import CUSTOMER_ORDERS_PATH, ORDER_INDEX_PATH, OrderSummaryView

STATUSES: Final = (PENDING, CONFIRMED, CANCELLED, REJECTED)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}")
_LAST_OF_DAY = timedelta(days=1) - timedelta(microseconds=1)

service = Service("order-list-views")


class OrderList(msgspec.Struct, frozen=True):
    """A page of orders, newest first; without a `next_cursor` it is the last one."""

    items: list[OrderSummaryView]
    next_cursor: str | None


STATUS: Final = Parameter("status", f"one or several of {', '.join(STATUSES)}, with commas between")
FROM: Final = Parameter("from", "placed then or later: a time, or a day (UTC)")
TO: Final = Parameter("to", "placed then or before: a time, or a day (UTC)")
LIST: Final = (STATUS, FROM, TO, LIMIT, CURSOR)


@service.route("GET", "/orders", Operation({200: OrderList}, (*LIST, *FRESHNESS)))
async def list_orders(request: web.Request) -> web.StreamResponse:
    """All orders, newest first: `{items, next_cursor}`, items as in a customer's list; 503 when a partition moves.

    `?status=` is one status or several with commas between; `?from=` and `?to=` are times or days (UTC), both included:
    when the order was placed, or placing it was refused, by business time. `?limit=` is 20, at most 1000. A request
    reads at most 1000 rows of each partition: a page of a filter that seldom matches may have fewer items, or none, and
    still a `next_cursor`. Only a page without one is the last. An order keeps its place, so that going on at a cursor
    shows it once, whatever happens meanwhile; what is placed behind the reader is on the first page of the next look.
    """
    query = query_of(request)
    await catch_up(request, ORDER_INDEX_PATH, None)
    return _answer(merged(await ask_all(request, newest_orders, query), query.limit))


@service.query("orders")
async def newest_orders(engine: Engine, partition: Partition, query: OrderQuery) -> OrderPage:
    """A page of one partition's orders."""
    return await partition_page(partition, query)


@service.route("GET", "/customers/{customer_id}/orders", Operation({200: OrderList}, LIST))
@by_key("customer_id", CUSTOMER_ORDERS_PATH)
async def get_customer_orders(request: web.Request, task: Partition) -> web.StreamResponse:
    """A customer's orders, newest first: `{items, next_cursor}`; a customer nobody knows has none.

    Filters, limit and cursor as for the list of all orders. Rejected orders are in that one only.
    """
    return _answer(await customer_page(task, request.match_info["customer_id"], query_of(request)))


def query_of(request: web.Request) -> OrderQuery:
    """The part of a list that a request asks for; raises a 422 problem."""
    since, until = _bound(request, FROM.name, timedelta()), _bound(request, TO.name, _LAST_OF_DAY)
    if since is not None and until is not None and until < since:
        raise invalid(TO.name, "a time not before from")
    return OrderQuery(LIMIT.read(request), _after(request), _statuses(request), since, until)


def _statuses(request: web.Request) -> frozenset[str]:
    text = request.query.get(STATUS.name)
    if text is None:
        return frozenset()
    statuses = frozenset(text.split(","))
    if not statuses <= frozenset(STATUSES):
        raise invalid(STATUS.name, f"one or several of {', '.join(STATUSES)}, with commas between")
    return statuses


def _bound(request: web.Request, name: str, into_day: timedelta) -> datetime | None:
    """A time, or a day of which `into_day` says which moment is meant."""
    text = request.query.get(name)
    if text is None:
        return None
    if _DAY.fullmatch(text) is None:
        return time_of(name, text)
    try:
        return datetime.combine(date.fromisoformat(text), time(tzinfo=UTC)) + into_day
    except ValueError as error:
        raise invalid(name, "a day such as 2026-11-23, or a time such as 2026-11-23T10:00:00Z") from error


def _after(request: web.Request) -> bytes:
    cursor = request.query.get(CURSOR.name)
    if not cursor:
        return b""
    try:
        place = decode_cursor(cursor)
        decode_place(place)
        place[PLACE_BYTES_MIN:].decode()
    except (InvalidCursor, ValueError, OverflowError, struct.error) as error:
        raise invalid(CURSOR.name, "not a cursor of this list") from error
    return place


def _answer(page: OrderPage) -> web.Response:
    next_cursor = None if page.end is None else encode_cursor(page.end)
    return json_response(OrderList([item for _, item in page.items], next_cursor))
