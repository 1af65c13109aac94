"""Pages of orders, newest first, by status and time: each reads a bounded number of rows, however few match."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime
from itertools import islice
from operator import itemgetter
from typing import Final

import msgspec

from domain.orders import UNKNOWN, Order
from engine import Partition, encode_prefix
from tables.orders import ORDERS
from tables.orders.customer_orders import CUSTOMER_ORDERS, CustomerOrder
from tables.orders.index import ORDERS_BY_TIME
from tables.orders.places import PLACE_BYTES_MIN, encode_place
from tables.orders.queries import OrderSummaryView, summary_view

LIMIT_MAX: Final = 1000
ROWS_READ_MAX: Final = LIMIT_MAX
"""Rows of a partition that one request reads; a page that needs more of them ends early, and goes on at its cursor."""
ROWS_PER_SLICE: Final = 200


class OrderQuery(msgspec.Struct, frozen=True):
    """Which orders are meant, and which part of their list: at most `limit` behind the place `after`.

    No `statuses` stand for all of them; `since` and `until` are business time, both included.
    """

    limit: int
    after: bytes = b""
    statuses: frozenset[str] = frozenset()
    since: datetime | None = None
    until: datetime | None = None

    @property
    def start(self) -> bytes:
        """The first place that may be meant."""
        newest = encode_place(self.until) if self.until is not None else b""
        return max(newest, self.after + b"\0" if self.after else b"")

    def reaches(self, place: bytes) -> bool:
        """Whether the place is not too old."""
        return self.since is None or place[:PLACE_BYTES_MIN] <= encode_place(self.since)

    def means(self, order: Order | CustomerOrder) -> bool:
        """Whether the order's status is one of those that are meant."""
        return not self.statuses or order.status in self.statuses


class OrderPage(msgspec.Struct, frozen=True):
    """Orders with their places. `end` is the place up to which there are no others; None when it is the list's end."""

    items: list[tuple[bytes, OrderSummaryView]]
    end: bytes | None


Found = tuple[bytes, Order | CustomerOrder | None]


async def partition_page(task: Partition, query: OrderQuery) -> OrderPage:
    """Orders of a partition as they are now, from the index."""

    def rows(start: bytes) -> Iterator[Found]:
        for key, _ in task.scan(ORDERS_BY_TIME, start=start):
            order = task.read(ORDERS, key.order_id, keep=False)
            yield encode_place(*key), order if order is not None and order.status != UNKNOWN else None

    return await _page(rows, query)


async def customer_page(task: Partition, customer_id: str, query: OrderQuery) -> OrderPage:
    """Orders of a customer, as the projection knows them."""
    prefix = encode_prefix(customer_id)

    def rows(start: bytes) -> Iterator[Found]:
        for key, order in task.scan(CUSTOMER_ORDERS, prefix, prefix + start):
            yield encode_place(key.created_at, key.order_id), order

    return await _page(rows, query)


async def _page(rows: Callable[[bytes], Iterator[Found]], query: OrderQuery) -> OrderPage:
    """The page of a sorted list that `rows` gives from a place on; gives the loop back in between.

    It ends with `limit` orders or ROWS_READ_MAX rows, and looks one row further to know whether that is the end.
    """
    items: list[tuple[bytes, OrderSummaryView]] = []
    start, last, read = query.start, query.after, 0
    while True:
        before = read
        for place, order in islice(rows(start), ROWS_PER_SLICE):
            if not query.reaches(place):
                return OrderPage(items, None)
            if len(items) == query.limit or read == ROWS_READ_MAX:
                return OrderPage(items, last)
            last, read = place, read + 1
            if order is not None and query.means(order):
                items.append((place, summary_view(order)))
        if read - before < ROWS_PER_SLICE:
            return OrderPage(items, None)
        start = last + b"\0"
        await asyncio.sleep(0)


def merged(pages: Sequence[OrderPage], limit: int) -> OrderPage:
    """The page of all partitions: nothing behind the place where the first of theirs ended, as others may be there."""
    horizon = min((page.end for page in pages if page.end is not None), default=None)
    found = heapq.merge(*(page.items for page in pages), key=itemgetter(0))
    items = [item for item in found if horizon is None or item[0] <= horizon]
    if len(items) > limit:
        return OrderPage(items[:limit], items[limit - 1][0])
    return OrderPage(items, horizon)
