"""The audit of stock, payments, sagas and projections: it finds every damage, and nothing where all is well."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from agents import analytics as analytics_service
from agents import customers as customer_service
from agents.analytics import TABLES as ANALYTICS
from domain.sagas.state import COMPENSATING, RUNNING, StepRun
from engine.declare.envelope import Metadata
from engine.declare.table import Table
from engine.faust.app import EngineApp
from streams.topics import CUSTOMER_ORDER_EVENTS, INVENTORY_EVENTS, PAYMENT_EVENTS
from tables.analytics import ANALYTICS_DAYS, ANALYTICS_TOTALS
from tables.customers import CUSTOMERS
from tables.inventory import RESERVATIONS, STOCK
from tables.orders.customer_orders import CUSTOMER_ORDERS
from tables.orders.index import ORDERS_BY_TIME
from tables.payments import PAYMENTS
from tables.reconciliation import ORDER_SUMS, PAYMENT_SUMS, STOCK_SUMS
from tables.sagas import SAGA_COUNTS, SAGAS, SagaCount
from tables.sagas.choreography import DEADLINES, Deadline
from tests.apps import KAFKA, at_rest, make_settings, read_topic, running, wait_until
from tests.integration.audits import audit, damage, differences, forge
from tests.integration.web import client_of, find, own_broker_url
from tests.letters import discard, open_letters, retry
from tests.unit.saga_world import STYLES

ORDERS_PLACED = 24
SCARCE, PLENTY = "scarce", "plenty"
UNDER_WAY = (RUNNING, COMPENSATING)


@pytest.fixture
def style() -> str:
    return "orchestration"


@pytest_asyncio.fixture(params=["embedded"])
async def app(request: pytest.FixtureRequest, tmp_path: Path, style: str) -> AsyncIterator[EngineApp]:
    """Run the whole application; some payments are declined."""
    settings = make_settings(
        own_broker_url(request), tmp_path, partitions=2, saga=style, payment_decline=0.2, retry_count=0
    )
    async with running(settings) as app:
        yield app


@pytest_asyncio.fixture
async def client(app: EngineApp) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(app) as client:
        yield client


def basket(number: int) -> dict[str, Any]:
    items = [
        {"product_id": product, "quantity": 1 + number % 3, "price": {"amount": "1.25", "currency": currency}}
        for product in (PLENTY, SCARCE)
        for currency in ("EUR" if number % 2 else "USD",)
    ]
    return {"order_id": f"o-{number}", "customer_id": f"c-{number % 5}", "country": "France", "items": items}


async def trade(app: EngineApp, client: httpx.AsyncClient) -> None:
    """Place orders of which some find no stock or no money; cancel some that are confirmed, and ship others."""
    for product, quantity in ((PLENTY, 1000), (SCARCE, 30)):
        assert (await client.put(f"/inventory/{product}", json={"quantity": quantity})).status_code == 202
    await at_rest(app)
    lines = "\n".join(json.dumps(basket(number)) for number in range(ORDERS_PLACED))
    assert (await client.post("/orders/batch", content=lines)).json()["accepted"] == ORDERS_PLACED
    await settled(app)
    for number in range(ORDERS_PLACED):
        if number % 4 < 2:
            what = "cancel" if number % 4 else "ship"
            assert (await client.post(f"/orders/o-{number}/{what}", json={})).status_code == 202
    await settled(app)


async def settled(app: EngineApp) -> None:
    """Wait until no saga is under way and nothing more follows."""

    def none_under_way() -> bool:
        counts = [task.read(SAGA_COUNTS, state) for task in app.engine.tasks.values() for state in UNDER_WAY]
        return sum(count.count for count in counts if count is not None) == 0

    await at_rest(app)
    await wait_until(none_under_way, "no saga is under way")
    await at_rest(app)


@pytest.mark.parametrize("style", STYLES)
async def test_nothing_is_found_after_confirmed_declined_cancelled_and_shipped_orders(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    trading = asyncio.create_task(trade(app, client))
    while not trading.done():
        assert await differences(app, client) == []
    await trading
    reports = await audit(client, 2)
    assert [report["state"] for report in reports] == ["clean", "clean"], reports
    states = {row.state for task in app.engine.tasks.values() for _, row in task.scan(SAGAS)}
    assert states == {"completed", "compensated"}
    for number in range(ORDERS_PLACED):
        assert (await find(client, f"/audit/orders/o-{number}"))["agrees"] is True


@pytest.mark.parametrize("app", [KAFKA], indirect=True)
async def test_nothing_is_found_on_kafka_while_sagas_run(app: EngineApp, client: httpx.AsyncClient) -> None:
    trading = asyncio.create_task(trade(app, client))
    while not trading.done():
        assert await differences(app, client) == []
    await trading
    assert [report["state"] for report in await audit(client, 2)] == ["clean", "clean"]


def rows_of(app: EngineApp, table: Table[Any, Any]) -> list[tuple[str, Any, Any]]:
    """Rows of a table, each with a text whose partition they are in."""
    found = []
    for number, task in app.engine.tasks.items():
        by = next(text for text in map(str, range(100)) if app.engine.partition_for(text.encode()) == number)
        found += [(by, key, row) for key, row in task.scan(table)]
    return found


async def test_every_table_is_held_against_its_events(app: EngineApp, client: httpx.AsyncClient) -> None:
    """A row that is gone, and one that has no event, in each table that is made of events alone."""
    await trade(app, client)
    tables = (STOCK, RESERVATIONS, PAYMENTS, SAGAS, CUSTOMER_ORDERS, CUSTOMERS, ORDERS_BY_TIME, ORDER_SUMS,
              STOCK_SUMS, PAYMENT_SUMS, *ANALYTICS)  # fmt: skip
    for table in tables:
        by, key, row = rows_of(app, table)[0]
        await damage(app, table, by, key, None)
        found = await differences(app, client)
        assert ("row_missing", table.name) in [(kind, name) for kind, name, *_ in found], table.name
        await damage(app, table, by, key, row)
    assert await differences(app, client) == []


@pytest.mark.parametrize(
    ("table", "is_row", "wrong"),
    [
        (STOCK, lambda row: True, lambda row: {"on_hand": row.on_hand + 1}),
        (STOCK, lambda row: row.reserved, lambda row: {"reserved": row.reserved - 1}),
        (RESERVATIONS, lambda row: row.state == "reserved", lambda row: {"state": "released"}),
        (PAYMENTS, lambda row: row.status == "received", lambda row: {"status": "refunded"}),
        (SAGAS, lambda row: row.state == "completed", lambda row: {"placed_id": "another"}),
        (SAGAS, lambda row: row.state == "completed", lambda row: {"steps": with_step(row, "charge", "undone")}),
        (SAGAS, lambda row: row.state == "completed", lambda row: {"steps": with_step(row, "confirm", "asked")}),
        (SAGAS, lambda row: row.state == "completed", lambda row: {"steps": with_step(row, "reserve", "asked")}),
        (SAGAS, lambda row: row.state == "compensated", lambda row: {"steps": with_step(row, "place", "done")}),
        (CUSTOMERS, lambda row: row.spent, lambda row: {"spent": row.spent[:-1]}),
        (CUSTOMER_ORDERS, lambda row: True, lambda row: {"version": row.version + 1}),
        (ANALYTICS_TOTALS, lambda row: True, lambda row: {"confirmed_revenue": row.confirmed_revenue + 1}),
        (ANALYTICS_DAYS, lambda row: True, lambda row: {"placed_count": row.placed_count - 1}),
        (PAYMENT_SUMS, lambda row: True, lambda row: {"refunded": row.refunded + 1}),
    ],
)
async def test_a_row_that_is_off_by_a_little_is_found(
    app: EngineApp,
    client: httpx.AsyncClient,
    table: Table[Any, Any],
    is_row: Callable[[Any], bool],
    wrong: Callable[[Any], dict[str, Any]],
) -> None:
    await trade(app, client)
    by, key, row = next(found for found in rows_of(app, table) if is_row(found[2]))
    await damage(app, table, by, key, msgspec.structs.replace(row, **wrong(row)))
    found = await differences(app, client)
    assert [(kind, name) for kind, name, *_ in found] == [("row_differs", table.name)], found
    assert found[0][4] is not None, "the event that the row follows from is named"


def with_step(saga: Any, name: str, state: Any) -> tuple[StepRun, ...]:
    """The steps of a saga, with one in another state."""
    index = next(index for index, run in enumerate(saga.steps) if run.name == name)
    return (*saga.steps[:index], msgspec.structs.replace(saga.steps[index], state=state), *saga.steps[index + 1 :])


async def test_a_wrong_count_of_sagas_is_found(app: EngineApp, client: httpx.AsyncClient) -> None:
    await trade(app, client)
    await damage(app, SAGA_COUNTS, "o-0", "completed", SagaCount(77))
    found = await differences(app, client)
    assert [(kind, table, key) for kind, table, key, *_ in found] == [("sum_differs", "saga-counts", "completed")]


@pytest.mark.parametrize("style", ["choreography"])
async def test_a_deadline_that_no_order_waits_for_is_found(app: EngineApp, client: httpx.AsyncClient) -> None:
    await trade(app, client)
    await damage(app, DEADLINES, "o-0", "o-0", Deadline(Metadata(), 0, 1 << 45, 1 << 45))
    found = await differences(app, client)
    assert [(kind, table, key) for kind, table, key, *_ in found] == [
        ("row_unfounded", "choreographed-deadlines", "o-0")
    ]


async def test_events_that_are_there_twice_are_found_in_every_topic(app: EngineApp, client: httpx.AsyncClient) -> None:
    await trade(app, client)
    forged = []
    for topic in (INVENTORY_EVENTS, PAYMENT_EVENTS, CUSTOMER_ORDER_EVENTS):
        record = (await read_topic(app, topic))[-1]
        (offset,) = await forge(app, topic, (record.key or b"").decode(), record.value or b"")
        forged.append(("event_repeated", None, None, topic.name, offset))
    await at_rest(app)
    found = await differences(app, client)
    assert sorted(found) == sorted(forged)


async def test_stock_that_does_not_add_up_in_its_events_is_found(app: EngineApp, client: httpx.AsyncClient) -> None:
    await trade(app, client)
    stock = app.engine.task(app.engine.partition_for(PLENTY.encode())).read(STOCK, PLENTY)
    assert stock is not None
    first = next(record for record in await read_topic(app, INVENTORY_EVENTS) if record.key == PLENTY.encode())
    event = json.loads(first.value or b"")
    event["aggregateVersion"], event["payload"]["onHand"] = stock.version + 1, stock.on_hand
    (offset,) = await forge(app, INVENTORY_EVENTS, PLENTY, json.dumps(event).encode())
    await at_rest(app)
    found = await differences(app, client)
    assert ("event_impossible", None, None, "inventory-events", offset) in found


async def test_dead_letters_make_no_difference_open_retried_or_discarded(
    app: EngineApp, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(customer: Any, order: Any) -> Any:
        raise ValueError("a mistake in a handler")

    with monkeypatch.context() as broken:
        broken.setattr(customer_service, "changed", fail)
        broken.setattr(analytics_service, "day_of", lambda timestamp: 1 / 0)
        await trade(app, client)
        assert await differences(app, client) == []
        first, *others = open_letters(app)
    await discard(app, first)
    for letter in others:
        await retry(app, letter)
    await at_rest(app)
    assert not open_letters(app)
    assert rows_of(app, CUSTOMERS)
    assert await differences(app, client) == []
