"""Lists of all orders over HTTP: pages, filters, what is refused, and orders from before there was an index."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from engine.faust.app import EngineApp
from engine.log.ports import Position
from engine.positions.tokens import encode_token
from streams.app import shop_services
from tables.orders import lists as order_lists
from tests.apps import caught_up, make_settings, running
from tests.integration.web import (
    all_of,
    check_problem,
    check_unavailable,
    client_of,
    find,
    hold_up,
    order,
    place,
    too_expensive,
)


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[EngineApp]:
    """Run the whole application in memory: what is tested here is the same on every log."""
    async with running(make_settings("memory://", tmp_path)) as app:
        yield app


TIMES = [f"2010-12-{1 + n // 4:02}T0{n % 4}:00:00Z" for n in range(40)]
"""When the orders of `history` were placed; two customers take turns."""


async def history(client: httpx.AsyncClient) -> str:
    """Place an order at each of TIMES, cancel every fifth, confirm every seventh; a token of it all."""
    lines = [json.dumps(order(f"c-{n % 2}", f"o-{n:02}", occurred_at=time)) for n, time in enumerate(TIMES)]
    tokens = [(await client.post("/orders/batch", content="\n".join(lines))).json()["token"]]
    for n in range(len(TIMES)):
        if n % 5 == 0 or n % 7 == 0:
            verb = "cancel" if n % 5 == 0 else "confirm"
            tokens.append((await client.post(f"/orders/o-{n:02}/{verb}")).json()["token"])
    return all_of(*tokens)


def status_of(n: int) -> str:
    """What became of an order of `history`."""
    return "cancelled" if n % 5 == 0 else "confirmed" if n % 7 == 0 else "pending"


def ids(numbers: Sequence[int]) -> list[str]:
    """The orders of these numbers, newest first."""
    return [f"o-{n:02}" for n in sorted(numbers, reverse=True)]


async def every_page(client: httpx.AsyncClient, path: str, **query: str | int) -> list[Any]:
    """All items of a list, page by page."""
    items: list[Any] = []
    cursor = ""
    while True:
        page = await find(client, path, cursor=cursor, **query)
        items += page["items"]
        if page["next_cursor"] is None:
            return items
        cursor = page["next_cursor"]


async def test_pages_hold_every_order_of_all_partitions_once_newest_first(client: httpx.AsyncClient) -> None:
    token = await history(client)
    for limit in (1, 7, 40, 1000):
        items = await every_page(client, "/orders", limit=limit, after=token)
        assert [item["order_id"] for item in items] == ids(range(40))
    first = items[0]
    listed = (await find(client, "/customers/c-1/orders", after=token))["items"]
    assert first == listed[0], "one shape for all lists"
    assert {name: value for name, value in (await find(client, "/orders/o-39")).items() if name in first} == first


async def test_who_reads_on_sees_each_order_once_whatever_is_placed_and_changed_meanwhile(
    client: httpx.AsyncClient,
) -> None:
    token = await history(client)
    seen, cursor, page_number = [], "", 0
    while cursor is not None:
        page = await find(client, "/orders", limit=6, after=token, cursor=cursor)
        seen += [item["order_id"] for item in page["items"]]
        cursor, page_number = page["next_cursor"], page_number + 1
        newer = await place(client, order("c-0", f"newer-{page_number}"))
        older = await place(client, order("c-0", f"older-{page_number}", occurred_at="2009-01-01T00:00:00Z"))
        changed = (await client.post(f"/orders/o-{39 - page_number}/cancel")).json()["token"]
        token = all_of(token, newer, older, changed)
        if page_number > 10:
            break
    assert [order_id for order_id in seen if order_id.startswith("o-")] == ids(range(40))
    assert len(seen) == len(set(seen))
    assert not any(order_id.startswith("newer") for order_id in seen)


@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ({"status": "cancelled"}, lambda n: status_of(n) == "cancelled"),
        ({"status": "pending,confirmed"}, lambda n: status_of(n) != "cancelled"),
        ({"status": "rejected"}, lambda n: False),
        ({"from": "2010-12-03", "to": "2010-12-04"}, lambda n: 8 <= n < 16),
        ({"from": "2010-12-03T02:00:00Z"}, lambda n: n >= 10),
        ({"to": "2010-12-03T03:00:00+01:00"}, lambda n: n <= 10),
        ({"from": "2010-12-03", "status": "confirmed"}, lambda n: n >= 8 and status_of(n) == "confirmed"),
        ({"from": "2011-01-01"}, lambda n: False),
    ],
)
async def test_filters_by_status_and_time(client: httpx.AsyncClient, query: dict[str, str], wanted: Any) -> None:
    token = await history(client)
    numbers = [n for n in range(40) if wanted(n)]
    for limit in (3, 100):
        found = await every_page(client, "/orders", limit=limit, after=token, **query)
        assert [item["order_id"] for item in found] == ids(numbers)
        found = await every_page(client, "/customers/c-1/orders", limit=limit, after=token, **query)
        assert [item["order_id"] for item in found] == ids([n for n in numbers if n % 2])


async def test_a_rare_order_costs_each_request_a_bounded_number_of_rows(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_lists, "ROWS_READ_MAX", 4)
    token = await history(client)
    for path in ("/orders", "/customers/c-0/orders"):
        page = await find(client, path, status="confirmed", to="2010-12-01T00:00:00Z", limit=10, after=token)
        assert page == {"items": [], "next_cursor": None}
        page = await find(client, path, status="rejected", limit=10, after=token)
        assert page["items"] == []
        assert page["next_cursor"], "nothing was found yet, which is not the end"
        found = await every_page(client, path, status="cancelled", limit=10, after=token)
        assert {item["order_id"] for item in found} == {
            f"o-{n:02}" for n in range(0, 40, 5 if path == "/orders" else 10)
        }


async def test_an_order_that_was_refused_is_listed_once_where_it_was_refused(client: httpx.AsyncClient) -> None:
    early = await place(client, order(order_id="early", occurred_at="2010-01-01T00:00:00Z"))
    refused = await place(client, {**too_expensive("refused"), "occurred_at": "2010-01-02T00:00:00Z"})
    late = await place(client, order(order_id="late", occurred_at="2010-01-03T00:00:00Z"))
    again = [
        await place(client, order("somebody", "refused", occurred_at="2010-01-04T00:00:00Z")),
        await place(client, order("somebody", "late", occurred_at="2010-01-05T00:00:00Z")),
        (await client.post("/orders/nobody/cancel")).json()["token"],
    ]
    items = (await find(client, "/orders", after=all_of(early, refused, late, *again)))["items"]
    assert [(item["order_id"], item["status"], item["created_at"]) for item in items] == [
        ("late", "pending", "2010-01-03T00:00:00.000000Z"),
        ("refused", "rejected", None),
        ("early", "pending", "2010-01-01T00:00:00.000000Z"),
    ]


UNUSABLE = (
    ("limit=0", "limit"),
    ("limit=1001", "limit"),
    ("status=open", "status"),
    ("status=", "status"),
    ("status=pending,,", "status"),
    ("from=yesterday", "from"),
    ("from=2010-02-30", "from"),
    ("to=2010-12-01T00:00:00", "to"),
    ("from=2010-12-02&to=2010-12-01", "to"),
    ("cursor=x", "cursor"),
    ("cursor=!", "cursor"),
    ("cursor=AAAA", "cursor"),
    ("cursor=AAAAAAAAAAAA", "cursor"),
    ("after=x", "after"),
    ("timeout=x&after=gQGh", "timeout"),
)


@pytest.mark.parametrize("path", ["/orders", "/customers/c-1/orders"])
async def test_what_cannot_be_used_is_named(client: httpx.AsyncClient, path: str) -> None:
    for query, field in UNUSABLE:
        problem = check_problem(await client.get(f"{path}?{query}"), 422)
        assert [error["field"] for error in problem["errors"]] == [field], query


async def test_a_partition_that_moves_makes_the_list_unavailable_and_never_shorter(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    token = await history(client)
    assert len((await find(client, "/orders", after=token, limit=100))["items"]) == 40
    await hold_up(app)
    app.consumer_generation_id += 1
    await app.engine.assigned({0}, app.consumer_generation_id)
    check_unavailable(await client.get("/orders"))


async def test_a_list_that_is_behind_is_a_504_with_the_lag(app: EngineApp, client: httpx.AsyncClient) -> None:
    future = encode_token([Position("order-commands", 0, 10_000)])
    problem = check_problem(await client.get("/orders", params={"after": future, "timeout": "20ms"}), 504)
    assert problem["lag_records"] == 10_001
    assert app.engine.tasks[0].waiters._room.count == 0


async def test_orders_from_before_there_was_an_index_are_listed_too(tmp_path: Path) -> None:
    settings = make_settings("embedded://", tmp_path, app_id="orders")
    older = [service for service in shop_services() if service.name != "order-index"]
    async with running(settings, older) as app, client_of(app) as client:
        token = await history(client)
        await find(client, "/customers/c-0/orders", after=token)
        assert (await find(client, "/orders"))["items"] == []
    async with running(settings) as app, client_of(app) as client:
        await caught_up(app, "index-orders")
        items = await every_page(client, "/orders", limit=9)
        assert [(item["order_id"], item["status"]) for item in items] == [
            (f"o-{n:02}", status_of(n)) for n in reversed(range(40))
        ]
        assert all(datetime.fromisoformat(item["created_at"]) for item in items)
