"""A customer's statistics over real HTTP, never older than the token they are read with."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from engine.faust.app import EngineApp
from streams.settings import Settings
from tests.apps import DURABLE_TRANSPORTS, TRANSPORTS, crash, make_settings, running, start
from tests.integration.web import all_of, check_problem, client_of, find, go_on, hold_up, order, own_broker_url, place


@pytest.fixture
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(own_broker_url(request), tmp_path)


@pytest_asyncio.fixture
async def app(settings: Settings) -> AsyncIterator[EngineApp]:
    """Run the whole application."""
    async with running(settings) as app:
        yield app


async def change(client: httpx.AsyncClient, path: str) -> str:
    answer = await client.post(path)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["token"])


@pytest.mark.parametrize("settings", TRANSPORTS, indirect=True)
async def test_each_change_of_an_order_is_in_the_statistics_read_with_its_token(client: httpx.AsyncClient) -> None:
    async def check(token: str, **changes: Any) -> None:
        expected.update(changes)
        assert await find(client, "/customers/c-1", after=token, timeout="30s") == expected

    expected = {
        "customer_id": "c-1",
        "order_count": 1,
        "confirmed_count": 0,
        "cancelled_count": 0,
        "total_spent": {"amount": "0.00", "currency": "USD"},
        "last_order_at": "2026-11-23T10:00:00.000000Z",
    }
    spent = {"amount": "3.00", "currency": "USD"}
    await check(await place(client, order("c-1", "o-1", occurred_at="2026-11-23T10:00:00Z")))
    await check(await place(client, order("c-1", "o-2", occurred_at="2010-12-01T08:00:00Z")), order_count=2)
    await check(await change(client, "/orders/o-1/confirm"), confirmed_count=1, total_spent=spent)
    await check(await change(client, "/orders/o-1/confirm"))  # refused
    await check(await change(client, "/orders/o-2/cancel"), cancelled_count=1)
    nothing = {"amount": "0.00", "currency": "USD"}
    await check(await change(client, "/orders/o-1/cancel"), confirmed_count=0, cancelled_count=2, total_spent=nothing)


@pytest.mark.parametrize("settings", ["memory"], indirect=True)
async def test_a_customer_whom_nobody_knows_is_a_404(client: httpx.AsyncClient) -> None:
    check_problem(await client.get("/customers/nobody"), 404)
    token = (await client.post("/orders/o-1/cancel")).json()["token"]  # refused, and of no customer
    check_problem(await client.get("/customers/nobody", params={"after": token, "timeout": "30s"}), 404)


@pytest.mark.parametrize("settings", ["memory"], indirect=True)
async def test_statistics_that_stay_behind_are_a_504(app: EngineApp, client: httpx.AsyncClient) -> None:
    await hold_up(app)
    token = await place(client, order("c-1", "o-1"))
    check_problem(await client.get("/customers/c-1", params={"after": token, "timeout": "50ms"}), 504)
    check_problem(await client.get("/customers/c-1", params={"after": "no-token"}), 422)
    await go_on(app)
    assert (await find(client, "/customers/c-1", after=token, timeout="30s"))["order_count"] == 1


@pytest.mark.parametrize("settings", DURABLE_TRANSPORTS, indirect=True)
async def test_nothing_counts_twice_after_a_crash_and_the_changelog_brings_it_all_back(settings: Settings) -> None:
    prices = [f"{n}.{n % 100:02}" for n in range(1, 121)]
    orders = [order(f"c-{n % 3}", f"o-{n}") for n in range(len(prices))]
    for body, price in zip(orders, prices, strict=True):
        body["items"] = [{"product_id": "P", "quantity": 1, "price": {"amount": price, "currency": "GBP"}}]
    app = await start(settings)
    async with client_of(app) as client:
        answer = await client.post("/orders/batch", content="\n".join(map(json.dumps, orders)))
        assert answer.json()["accepted"] == len(prices), answer.text
        confirmed = [await change(client, f"/orders/o-{n}/confirm") for n in range(60)]
        token = all_of(answer.json()["token"], *confirmed)
    await crash(app)  # whatever was not committed comes again
    shutil.rmtree(settings.data_dir / "stores")
    async with running(settings) as app, client_of(app) as client:
        for number in range(3):
            customer = await find(client, f"/customers/c-{number}", after=token, timeout="30s")
            mine = [Decimal(price) for price in prices[:60][number::3]]
            assert (customer["order_count"], customer["confirmed_count"]) == (40, 20)
            assert customer["total_spent"] == {"amount": str(sum(mine)), "currency": "GBP"}
