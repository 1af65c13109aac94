"""Analytics over real HTTP: sums over all partitions and workers, exact to the cent, never with a silent hole."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from decimal import Decimal
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import pytest_asyncio

from engine.faust.app import EngineApp
from engine.faust.assignor import NumberAssignor
from engine.web import freshness, gathering
from engine.web.freshness import Step
from engine.work.waiters import Wanted
from streams.app import create_app
from tables.analytics import views as analytics_views
from tests.apps import TRANSPORTS, make_settings, running, stop, wait_until
from tests.integration.web import (
    all_of,
    check_problem,
    check_unavailable,
    client_of,
    find,
    go_on,
    hold_up,
    order,
    own_broker_url,
    place,
)
from tests.kafka import KafkaBroker, unused_port

PATHS = ("/analytics/summary", "/analytics/daily", "/analytics/products", "/analytics/countries")


@pytest_asyncio.fixture(params=["memory"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineApp]:
    """Run the whole application."""
    async with running(make_settings(own_broker_url(request), tmp_path)) as app:
        yield app


def basket(order_id: str, day: str, *lines: tuple[str, int, str], currency: str = "GBP", **changes: Any) -> Any:
    """Return a body of POST /orders with these lines: product, quantity, price."""
    items = [
        {"product_id": product, "quantity": quantity, "price": {"amount": price, "currency": currency}}
        for product, quantity, price in lines
    ]
    return order("c-1", order_id, items=items, occurred_at=f"{day}T12:00:00Z", **changes)


async def change(client: httpx.AsyncClient, order_id: str, what: str, day: str, **body: Any) -> str:
    answer = await client.post(f"/orders/{order_id}/{what}", json={"occurred_at": f"{day}T12:00:00Z", **body})
    assert answer.status_code == 202, answer.text
    return str(answer.json()["token"])


async def place_all(client: httpx.AsyncClient, bodies: Sequence[Mapping[str, Any]]) -> str:
    answer = await client.post("/orders/batch", content="\n".join(map(json.dumps, bodies)))
    assert answer.json()["accepted"] == len(bodies), answer.text
    return str(answer.json()["token"])


async def read(client: httpx.AsyncClient, path: str, token: str, **query: str | int) -> Any:
    return await find(client, f"/analytics/{path}", after=token, timeout="30s", **query)


def picked(items: Sequence[Mapping[str, Any]], *fields: str) -> list[tuple[Any, ...]]:
    return [tuple(item[field] for field in fields) for item in items]


# ---- what is shown


@pytest.mark.parametrize("app", TRANSPORTS, indirect=True)
async def test_what_happens_to_orders_is_in_every_view_read_with_the_tokens(client: httpx.AsyncClient) -> None:
    token = all_of(
        await place(client, basket("o-1", "2010-12-01", ("A", 2, "1.50"), ("B", 1, "0.05"), country="France")),
        await place(client, basket("o-2", "2010-12-02", ("A", 1, "1.50"), country="Norway")),
        await place(client, basket("o-3", "2010-12-02", ("C", 3, "9.99"), currency="EUR")),
        await place(client, basket("o-4", "2010-12-02", ("C", 1, "9.99"), country="France")),
        await change(client, "o-1", "confirm", "2010-12-03"),
        await change(client, "o-2", "confirm", "2010-12-03"),
        await change(client, "o-1", "ship", "2010-12-04"),
        await change(client, "o-3", "cancel", "2010-12-04", reason="changed my mind"),
        await change(client, "o-2", "cancel", "2010-12-04"),
        await change(client, "o-4", "confirm", "2010-12-04"),
        await change(client, "o-4", "confirm", "2010-12-04"),  # refused
        await place(client, basket("o-1", "2010-12-05", ("A", 1, "1.00"))),  # refused
    )

    summary = await read(client, "summary", token)
    assert {name: count for name, count in summary.items() if name.endswith("_count")} == {
        "placed_count": 4,
        "confirmed_count": 3,
        "cancelled_count": 2,
        "refunded_count": 1,
        "shipped_count": 1,
        "rejected_count": 1,
        "late_count": 0,
    }
    amounts = ("placed_revenue", "confirmed_revenue", "cancelled_revenue", "refunded_revenue", "revenue")
    assert picked(summary["revenue"], "currency", *amounts) == [
        ("EUR", "29.97", "0", "29.97", "0", "0"),
        ("GBP", "14.54", "14.54", "0", "1.50", "13.04"),
    ]
    assert picked(summary["funnel"], "step", "count", "share") == [
        ("placed", 4, 1.0),
        ("confirmed", 3, 0.75),
        ("shipped", 1, 0.25),
        ("cancelled", 2, 0.5),
    ]
    assert picked(summary["cancel_reasons"], "reason", "count", "share") == [
        (None, 1, 0.5),
        ("changed my mind", 1, 0.5),
    ]

    daily = (await read(client, "daily", token))["items"]
    counts = ("placed_count", "confirmed_count", "cancelled_count", "shipped_count", "rejected_count")
    assert picked(daily, "day", "currency", *counts, "revenue") == [
        ("2010-12-01", "GBP", 1, 0, 0, 0, 0, "0"),
        ("2010-12-02", "EUR", 1, 0, 0, 0, 0, "0"),
        ("2010-12-02", "GBP", 2, 0, 0, 0, 0, "0"),
        ("2010-12-03", "GBP", 0, 2, 0, 0, 0, "4.55"),
        ("2010-12-04", "EUR", 0, 0, 1, 0, 0, "0"),
        ("2010-12-04", "GBP", 0, 1, 1, 1, 0, "8.49"),
        ("2010-12-05", None, 0, 0, 0, 0, 1, "0"),
    ]
    columns = ("product_id", "currency", "order_count", "quantity", "placed_revenue", "confirmed_quantity", "revenue")
    assert picked((await read(client, "products", token))["items"], *columns) == [
        ("C", "GBP", 1, 1, "9.99", 1, "9.99"),
        ("A", "GBP", 2, 3, "4.50", 2, "3.00"),
        ("B", "GBP", 1, 1, "0.05", 1, "0.05"),
        ("C", "EUR", 1, 3, "29.97", 0, "0"),
    ]
    countries = (await read(client, "countries", token))["items"]
    assert picked(countries, "country", "currency", "placed_count", "cancelled_count", "revenue") == [
        ("France", "GBP", 2, 0, "13.04"),
        ("unknown", "EUR", 1, 1, "0"),
        ("Norway", "GBP", 1, 1, "0.00"),
    ]


async def test_nothing_at_all_is_shown_as_such(client: httpx.AsyncClient) -> None:
    assert (await find(client, "/analytics/summary"))["placed_count"] == 0
    for path in PATHS[1:]:
        assert await find(client, path) == {"items": []}


@pytest.mark.parametrize(
    ("app", "rows_per_slice"),
    [("memory", 1), ("embedded", 7), ("memory", 500), pytest.param("kafka", 7, marks=pytest.mark.kafka)],
    indirect=["app"],
)
async def test_many_small_amounts_make_an_exact_sum(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, rows_per_slice: int
) -> None:
    monkeypatch.setattr(gathering, "ROWS_PER_SLICE", rows_per_slice)
    choice = random.Random(5)
    prices = [f"{choice.randrange(1, 10**7)}.{choice.randrange(100):02}" for _ in range(200)]
    days = [f"2010-{1 + n % 12:02}-{1 + n % 28:02}" for n in range(len(prices))]
    token = await place_all(
        client,
        [basket(f"o-{n}", days[n], (f"P-{n % 60}", 1, price), country=f"L{n % 9}") for n, price in enumerate(prices)],
    )
    total = sum(map(Decimal, prices))
    (money,) = (await read(client, "summary", token))["revenue"]
    assert money["placed_revenue"] == str(total)
    for path, rows in (("daily", len(set(days))), ("products", 60), ("countries", 9)):
        items = (await read(client, path, token, **({} if path == "daily" else {"limit": 1000})))["items"]
        assert len(items) == rows
        assert sum(Decimal(item["placed_revenue"]) for item in items) == total
    top = (await read(client, "products", token, limit=5))["items"]
    sums = [sum(Decimal(price) for price in prices[n::60]) for n in range(60)]
    assert picked(top, "placed_revenue") == [(str(each),) for each in sorted(sums, reverse=True)[:5]]


async def test_late_events_are_counted_on_their_own_day_and_as_late(client: httpx.AsyncClient, app: EngineApp) -> None:
    same = [f"o-{n}" for n in range(50) if app.engine.partition_for(f"o-{n}".encode()) == 0][:4]
    days = ["2010-12-05", "2010-12-07", "2010-12-05", "2010-12-06"]
    for order_id, day in zip(same, days, strict=True):
        token = await place(client, basket(order_id, day, ("A", 1, "1.00")))
    daily = (await read(client, "daily", token))["items"]
    assert picked(daily, "day", "placed_count", "late_count") == [
        ("2010-12-05", 2, 1),
        ("2010-12-06", 1, 1),
        ("2010-12-07", 1, 0),
    ]
    assert (await read(client, "summary", token))["late_count"] == 2


@pytest.mark.parametrize(
    ("query", "days"),
    [
        ({}, ["01", "02", "03", "31"]),
        ({"from": "2010-12-02"}, ["02", "03", "31"]),
        ({"to": "2010-12-02"}, ["01", "02"]),
        ({"from": "2010-12-02", "to": "2010-12-03"}, ["02", "03"]),
        ({"from": "2010-12-04", "to": "2010-12-30"}, []),
        ({"from": "2010-12-31", "to": "2010-12-31"}, ["31"]),
    ],
)
@pytest.mark.parametrize("rows_per_slice", [1, 500])
async def test_a_range_of_days_holds_both_its_ends(
    client: httpx.AsyncClient,
    monkeypatch: pytest.MonkeyPatch,
    query: dict[str, str],
    days: list[str],
    rows_per_slice: int,
) -> None:
    monkeypatch.setattr(gathering, "ROWS_PER_SLICE", rows_per_slice)
    placed = [basket(f"o-{day}", f"2010-12-{day}", ("A", 1, "1.00")) for day in ("31", "02", "01", "03")]
    daily = await read(client, "daily", await place_all(client, placed), **query)
    assert [item["day"] for item in daily["items"]] == [f"2010-12-{day}" for day in days]


async def test_one_currency_can_be_asked_for(client: httpx.AsyncClient) -> None:
    placed = [basket(f"o-{code}", "2010-12-01", ("A", 1, "1.00"), currency=code) for code in ("GBP", "EUR")]
    token = await place_all(client, placed)
    for path in ("products", "countries"):
        assert picked((await read(client, path, token, currency="EUR"))["items"], "currency") == [("EUR",)]


@pytest.mark.parametrize(
    "path",
    [
        "/analytics/daily?from=yesterday",
        "/analytics/daily?to=2010-02-30",
        "/analytics/daily?from=20101201",
        "/analytics/daily?from=2010-12-02&to=2010-12-01",
        "/analytics/products?limit=0",
        "/analytics/products?limit=1001",
        "/analytics/products?limit=many",
        "/analytics/products?currency=euro",
        "/analytics/countries?limit=0",
        "/analytics/summary?after=no-token",
    ],
)
async def test_a_parameter_that_cannot_be_used_is_a_422(client: httpx.AsyncClient, path: str) -> None:
    problem = check_problem(await client.get(path), 422)
    assert problem["errors"][0]["field"] in path


async def test_more_days_than_are_shown_are_refused(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    token = await place_all(client, [basket(f"o-{n}", f"2010-12-{n:02}", ("A", 1, "1.00")) for n in range(1, 6)])
    await read(client, "daily", token)
    monkeypatch.setattr(analytics_views, "DAYS_MAX", 4)
    assert "at most 4" in check_problem(await client.get("/analytics/daily"), 422)["detail"]
    assert len((await find(client, "/analytics/daily", to="2010-12-04"))["items"]) == 4


# ---- tokens


@pytest.mark.parametrize("path", PATHS)
async def test_figures_that_stay_behind_are_a_504(app: EngineApp, client: httpx.AsyncClient, path: str) -> None:
    await hold_up(app)
    token = await place(client, order(order_id="o-1"))
    check_problem(await client.get(path, params={"after": token, "timeout": "50ms"}), 504)
    await find(client, path)  # without a token nothing is waited for
    await go_on(app)
    await find(client, path, after=token, timeout="30s")


async def test_a_view_of_all_partitions_waits_for_every_one_of_them(
    app: EngineApp, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[tuple[str, int]] = []
    wait_at = freshness.wait_at

    async def noting(request: Any, hop: Step, number: int, wanted: Wanted, deadline: float) -> None:
        waited.append((hop.name, number))
        await wait_at(request, hop, number, wanted, deadline)

    monkeypatch.setattr(freshness, "wait_at", noting)
    token = await place(client, order(order_id="o-1"))
    await read(client, "summary", token)
    assert sorted(waited) == [
        ("decide-orders", app.engine.partition_for(b"o-1")),
        ("project-analytics", 0),
        ("project-analytics", 1),
    ]


async def test_no_answer_is_older_than_its_token_under_load(client: httpx.AsyncClient) -> None:
    slots = asyncio.Semaphore(16)
    answered = 0

    async def one(number: int) -> None:
        nonlocal answered
        async with slots:
            token = await place(client, basket(f"o-{number}", "2010-12-01", ("A", 1, "0.01")))
            before = answered
            placed_count = (await read(client, "summary", token))["placed_count"]
            assert placed_count > before, "this order, and all that were read before it was"
            answered += 1

    await asyncio.gather(*(one(number) for number in range(100)))
    assert (await find(client, "/analytics/summary"))["placed_count"] == 100


# ---- several workers


def assignor(app: EngineApp) -> NumberAssignor:
    """What a worker believes about who owns what."""
    return cast(NumberAssignor, app.assignor)


async def own(app: EngineApp, numbers: set[int]) -> None:
    """Take partitions away as a rebalance does."""
    await app.engine.revoked()
    app.consumer_generation_id += 1
    await app.engine.assigned(numbers, app.consumer_generation_id)
    await wait_until(app.engine.is_ready, "the partitions are restored")


@pytest.mark.parametrize("path", PATHS)
async def test_a_partition_that_cannot_be_read_is_no_silent_hole(
    app: EngineApp, client: httpx.AsyncClient, path: str
) -> None:
    await find(client, path)
    await own(app, {0})
    check_unavailable(await client.get(path))
    assignor(app).external_topic_distribution = {f"http://127.0.0.1:{unused_port()}": {"order-commands": [1]}}
    check_unavailable(await client.get(path))


async def test_a_worker_that_no_longer_owns_a_partition_is_no_silent_hole(tmp_path: Path) -> None:
    settings = [make_settings("memory://", tmp_path / str(index), partitions=2) for index in range(2)]
    async with running(settings[0]) as one, running(settings[1]) as other, client_of(one) as client:
        for app in (one, other):
            await own(app, {0})
        assignor(one).external_topic_distribution = {settings[1].public_url: {"order-commands": [1]}}
        for path in PATHS:
            check_unavailable(await client.get(path))


@pytest.mark.parametrize("rows_per_slice", [1, 500])
async def test_partitions_of_another_worker_are_added(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows_per_slice: int
) -> None:
    # Each worker has a log of its own here, so what the other one adds can be told from what is in this one's.
    monkeypatch.setattr(gathering, "ROWS_PER_SLICE", rows_per_slice)
    settings = [make_settings("memory://", tmp_path / str(index), partitions=2) for index in range(2)]
    async with running(settings[0]) as one, running(settings[1]) as other, client_of(one) as client:
        ids = [f"o-{n}" for n in range(40)]
        lines = [basket(order_id, f"2010-12-{1 + n % 4:02}", ("A", 1, "1.00")) for n, order_id in enumerate(ids)]
        token = await place_all(client, lines)
        await read(client, "summary", token)
        async with client_of(other) as client_of_other:
            lines = [basket(order_id, "2010-12-02", (order_id, 2, "1.00"), country="Norway") for order_id in ids]
            await read(client_of_other, "summary", await place_all(client_of_other, lines))
            await change(client_of_other, "o-1", "cancel", "2010-12-03", reason="too late")
        await own(one, {0})
        assignor(one).external_topic_distribution = {settings[1].public_url: {"order-commands": [1]}}
        here = sum(one.engine.partition_for(order_id.encode()) == 0 for order_id in ids)
        there = len(ids) - here
        (money,) = (await find(client, "/analytics/summary"))["revenue"]
        assert money["placed_revenue"] == f"{here + 2 * there}.00"
        countries = (await find(client, "/analytics/countries"))["items"]
        assert dict(picked(countries, "country", "placed_count")) == {"unknown": here, "Norway": there}
        products = (await find(client, "/analytics/products", limit=1000))["items"]
        assert sum(item["order_count"] for item in products) == len(ids)
        assert len(products) == 1 + there
        daily = (await find(client, "/analytics/daily", **{"from": "2010-12-02", "to": "2010-12-02"}))["items"]
        assert [item["day"] for item in daily] == ["2010-12-02"]
        assert daily[0]["placed_count"] >= there


async def test_two_workers_on_kafka_give_the_same_answers_also_when_one_takes_over(
    private_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    def new_worker(name: str) -> EngineApp:
        broker = f"kafka://{private_kafka_broker.bootstrap}"
        app = create_app(make_settings(broker, tmp_path / name, app_id="orders", partitions=4))
        app.finalize()
        return app

    async def settled(*apps: EngineApp) -> None:
        urls = {app.engine.settings.public_url for app in apps}
        await wait_until(
            lambda: (
                sorted(number for app in apps for number in app.engine.numbers) == [0, 1, 2, 3]
                and all(app.engine.is_ready() for app in apps)
                and all(set(assignor(app).external_topic_distribution) == urls for app in apps)
            ),
            f"{len(apps)} workers share the partitions",
            90,
        )

    apps = [new_worker("one"), new_worker("other")]
    async with AsyncExitStack() as stack:
        for app in apps:
            stack.push_async_callback(stop, app)
        await asyncio.gather(*(app.start() for app in apps))
        await settled(*apps)
        assert all(app.engine.numbers for app in apps)
        clients = [await stack.enter_async_context(client_of(app)) for app in apps]
        lines = [basket(f"o-{n}", f"2010-12-{1 + n % 5:02}", (f"P-{n % 7}", 1, f"{n}.05")) for n in range(1, 101)]
        tokens = [await place_all(clients[0], lines)]
        tokens += [await change(clients[n % 2], f"o-{n}", "confirm", "2010-12-06") for n in range(1, 41)]
        tokens += [await change(clients[n % 2], f"o-{n}", "cancel", "2010-12-07", reason="late") for n in range(31, 61)]
        token = all_of(*tokens)
        answers: list[Any] = []
        for path in PATHS:
            both = [await find(client, path, after=token, timeout="30s") for client in clients]
            assert both[0] == both[1]
            answers.append(both[0])
        (money,) = answers[0]["revenue"]
        assert money["placed_revenue"] == str(sum(Decimal(f"{n}.05") for n in range(1, 101)))
        assert money["revenue"] == str(sum(Decimal(f"{n}.05") for n in range(1, 31)))
        assert money["cancelled_revenue"] == str(sum(Decimal(f"{n}.05") for n in range(41, 61)))
        assert answers[0]["cancel_reasons"] == [{"reason": "late", "count": 30, "share": 1.0}]

        await stop(apps[1])
        await settled(apps[0])
        assert [await find(clients[0], path) for path in PATHS] == answers
