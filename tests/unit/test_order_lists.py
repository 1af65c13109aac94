"""Pages of orders: followed to the end they show each order that is meant once, and none reads more than its share."""

from __future__ import annotations

import asyncio
from bisect import insort
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.orders import OrderStatus
from tables.orders import lists as order_lists
from tables.orders.customer_orders import CUSTOMER_ORDERS, CustomerOrderKey
from tables.orders.index import ORDERS_BY_CORRELATION, ORDERS_BY_TIME, CorrelatedOrder, PlacedOrder
from tables.orders.lists import Found, OrderPage, OrderQuery, _page, merged
from tables.orders.places import encode_place
from tests.unit.test_order_domain import PLACE, after

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
PARTITIONS = 3
(EXAMPLE,) = (after(PLACE).order,)

times = st.integers(0, 5).map(lambda minutes: NOON + timedelta(minutes=minutes))
statuses: st.SearchStrategy[OrderStatus] = st.sampled_from(["pending", "confirmed", "cancelled", "rejected"])
placed = st.tuples(st.integers(0, PARTITIONS - 1), times, statuses)


@dataclass
class Partition:
    """A sorted list of orders, as the index has it, that counts what is read of it."""

    rows: list[tuple[bytes, str, datetime, OrderStatus]] = field(default_factory=list)
    read: int = 0

    def place(self, order_id: str, at: datetime, status: OrderStatus) -> None:
        insort(self.rows, (encode_place(at, order_id), order_id, at, status))

    def scan(self, start: bytes) -> Iterator[Found]:
        for place, order_id, at, status in self.rows:
            if place >= start:
                self.read += 1
                assert EXAMPLE is not None
                yield place, msgspec.structs.replace(EXAMPLE, order_id=order_id, created_at=at, status=status)


async def pages_of(partitions: list[Partition], query: OrderQuery) -> OrderPage:
    for partition in partitions:
        partition.read = 0
    return merged([await _page(partition.scan, query) for partition in partitions], query.limit)


@given(
    orders=st.lists(placed, max_size=30),
    newcomers=st.lists(placed, max_size=10),
    wanted=st.frozensets(statuses),
    limit=st.integers(1, 8),
    since=st.none() | times,
    until=st.none() | times,
)
@settings(deadline=None)
def test_whoever_follows_the_cursors_sees_each_order_that_is_meant_once_newest_first(
    orders: list[tuple[int, datetime, OrderStatus]],
    newcomers: list[tuple[int, datetime, OrderStatus]],
    wanted: frozenset[str],
    limit: int,
    since: datetime | None,
    until: datetime | None,
) -> None:
    partitions = [Partition() for _ in range(PARTITIONS)]
    expected = []
    for n, (number, at, status) in enumerate(orders):
        partitions[number].place(f"o-{n:02}", at, status)
        in_time = (since is None or since <= at) and (until is None or at <= until)
        if in_time and (not wanted or status in wanted):
            expected.append((-at.timestamp(), f"o-{n:02}"))

    async def follow() -> list[str]:
        seen: list[str] = []
        cursor: bytes | None = b""
        while cursor is not None:
            page = await pages_of(partitions, OrderQuery(limit, cursor, wanted, since, until))
            assert len(page.items) <= limit
            assert all(partition.read <= order_lists.ROWS_READ_MAX + 2 for partition in partitions)
            assert page.end is None or page.end > cursor
            seen += [item.order_id for _, item in page.items]
            cursor = page.end
            for number, at, status in newcomers[:2]:
                partitions[number].place(f"new-{len(newcomers)}", at, status)
                del newcomers[0]
        return seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order_lists, "ROWS_READ_MAX", 2)
        patch.setattr(order_lists, "ROWS_PER_SLICE", 1)
        seen = asyncio.run(follow())
    assert [order_id for order_id in seen if order_id.startswith("o-")] == [
        order_id for _, order_id in sorted(expected)
    ]
    assert len(seen) == len(set(seen))


def test_a_list_that_ends_with_its_page_has_no_further_one() -> None:
    partitions = [Partition() for _ in range(PARTITIONS)]
    for n in range(6):
        partitions[n % PARTITIONS].place(f"o-{n}", NOON + timedelta(seconds=n), "pending")
    assert asyncio.run(pages_of(partitions, OrderQuery(6))).end is None
    assert asyncio.run(pages_of(partitions, OrderQuery(5))).end is not None


def test_nothing_is_shown_behind_the_place_where_a_partition_stopped_looking(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order_lists, "ROWS_READ_MAX", 2)
    dense, sparse = Partition(), Partition()
    for n in range(3):
        dense.place(f"dense-{n}", NOON - timedelta(minutes=n), "pending")
    dense.place("rare", NOON - timedelta(minutes=9), "cancelled")
    sparse.place("older", NOON - timedelta(minutes=10), "cancelled")
    query = OrderQuery(5, statuses=frozenset({"cancelled"}))
    first = asyncio.run(pages_of([dense, sparse], query))
    assert first == OrderPage([], encode_place(NOON - timedelta(minutes=1), "dense-1"))
    assert first.end is not None
    rest = asyncio.run(pages_of([dense, sparse], msgspec.structs.replace(query, after=first.end)))
    assert ([item.order_id for _, item in rest.items], rest.end) == (["rare", "older"], None)


@given(at=st.datetimes(timezones=st.just(UTC)), order_id=st.text(min_size=1, max_size=20), other=st.text(max_size=9))
def test_keys_of_lists_come_back_as_they_were_and_hold_the_places_of_their_orders(
    at: datetime, order_id: str, other: str
) -> None:
    key = CustomerOrderKey(other, at, order_id)
    assert CUSTOMER_ORDERS.key.decode(CUSTOMER_ORDERS.key.encode(key)) == key
    assert CUSTOMER_ORDERS.key.encode(key).endswith(encode_place(at, order_id))
    placed_order = PlacedOrder(at, order_id)
    assert ORDERS_BY_TIME.key.encode(placed_order) == encode_place(at, order_id)
    assert ORDERS_BY_TIME.key.decode(encode_place(at, order_id)) == placed_order
    correlated = CorrelatedOrder(other, order_id)
    assert ORDERS_BY_CORRELATION.key.decode(ORDERS_BY_CORRELATION.key.encode(correlated)) == correlated
