"""The web view of stories: what was asked of an order, what happened, and what caused what."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable
from itertools import islice
from operator import attrgetter
from typing import Any, Final

import msgspec
from aiohttp import web

from domain.orders import UNKNOWN
from engine import Envelope, Partition, Service, encode_prefix
from engine.web import (
    CURSOR,
    ENGINE,
    FRESHNESS,
    Engine,
    InvalidCursor,
    Operation,
    ask_all,
    by_key,
    catch_up,
    decode_cursor,
    encode_cursor,
    invalid,
    json_response,
    number,
)
from tables.notifications import notifications_of
from tables.orders import ORDERS
from tables.orders.index import ORDERS_BY_CORRELATION
from tables.orders.queries import ORDER_INDEX_PATH, SAGA_PATH, order_history
from tables.orders.views import no_order
from tables.payments import PAYMENTS
from tables.sagas import SAGAS
from tables.stories.tree import Node, Parts, story

STORIES_MAX: Final = 100
LIMIT: Final = number("limit", "how many items there are at most", 20, 1, STORIES_MAX)
Decode = Callable[[bytes], Envelope[Any]]

service = Service("story-views")


class Story(msgspec.Struct, frozen=True):
    """An order and the trees of its story; `correlation_id` is the one it began with, `status` null for none placed."""

    order_id: str
    customer_id: str | None
    status: str | None
    correlation_id: str | None
    roots: list[Node]


class StoryList(msgspec.Struct, frozen=True):
    """Stories of a correlation, by order id; without a `next_cursor` they are the last ones."""

    items: list[Story]
    next_cursor: str | None


@service.route("GET", "/orders/{order_id}/story", Operation({200: Story}, problems=(404,)))
@by_key("order_id", SAGA_PATH)
async def get_story(request: web.Request, task: Partition) -> web.StreamResponse:
    """All that was asked of an order, that happened and that was sent, as a tree: `{order_id, ..., roots}`.

    A node is `{id, kind, type, at, topic, aggregate_type, aggregate_id, caused_by, aggregate_version, detail, state,
    children}`; `kind` is `command`, `event` or `mail`. Ids are those of the records in the topics. What came from
    outside is a root, and so is what nobody knows the cause of any more; what is deeper than 100 goes on as a root with
    its `caused_by`. `at` is business time, of mails when they were asked for. With `?after=TOKEN` order and saga are
    not older than it; answers of others may still be on their way. 404 for an unknown order.
    """
    found = find_story(task, request.app[ENGINE].registry.decode, request.match_info["order_id"])
    if found is None:
        raise no_order(request.match_info["order_id"])
    return json_response(found)


@service.route("GET", "/stories/{correlation_id}", Operation({200: StoryList}, (LIMIT, CURSOR, *FRESHNESS)))
async def list_stories(request: web.Request) -> web.StreamResponse:
    """The stories of all orders that a correlation id had to do with, `{items, next_cursor}`, by order id.

    The id is that of a request (`X-Correlation-Id`), or of the first record of what followed from it. `?limit=` is 20,
    at most 100. 503 when a partition moves.
    """
    correlation_id, limit = request.match_info["correlation_id"], LIMIT.read(request)
    after = _after(request)
    await catch_up(request, ORDER_INDEX_PATH, None)
    pages = await ask_all(request, stories_of, StoriesAsked(correlation_id, after, limit + 1))
    items = list(islice(heapq.merge(*pages, key=attrgetter("order_id")), limit + 1))
    next_cursor = encode_cursor(items[limit - 1].order_id.encode()) if len(items) > limit else None
    return json_response(StoryList(items[:limit], next_cursor))


class StoriesAsked(msgspec.Struct, frozen=True):
    """The first stories of a correlation behind the order `after`."""

    correlation_id: str
    after: str
    limit: int


@service.query("stories")
async def stories_of(engine: Engine, partition: Partition, asked: StoriesAsked) -> list[Story]:
    """Stories of one partition, by order id; gives the loop back in between."""
    after = asked.after
    prefix = encode_prefix(asked.correlation_id)
    start = prefix + after.encode() + b"\0" if after else b""
    keys = [key for key, _ in islice(partition.scan(ORDERS_BY_CORRELATION, prefix, start), asked.limit)]
    stories = []
    for key in keys:
        found = find_story(partition, engine.registry.decode, key.order_id)
        if found is not None:
            stories.append(found)
        await asyncio.sleep(0)
    return stories


def find_story(task: Partition, decode: Decode, order_id: str) -> Story | None:
    """The story of an order, None where nothing was ever asked of it."""
    order, history = task.read(ORDERS, order_id), order_history(task, order_id)
    if order is None or not history:
        return None
    events = [decode(value) for value in history]
    saga, payment, mails = task.read(SAGAS, order_id), task.read(PAYMENTS, order_id), notifications_of(task, order_id)
    return Story(
        order_id,
        order.customer_id,
        order.status if order.status != UNKNOWN else None,
        events[0].metadata.correlation_id,
        story(Parts(events, order, saga, payment, mails)),
    )


def _after(request: web.Request) -> str:
    try:
        return decode_cursor(request.query.get(CURSOR.name, "")).decode()
    except (InvalidCursor, UnicodeDecodeError) as error:
        raise invalid(CURSOR.name, "not a cursor of this list") from error
