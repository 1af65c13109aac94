"""A store whose disk lies: nothing is answered from what cannot be read, and it is said."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from streams.app import OrdersApp, create_app
from streams.engine.positions import POSITIONS
from streams.settings import Settings
from tables.orders import ORDERS
from tests.apps import caught_up, make_settings, running, wait_until
from tests.damage import damage_rows
from tests.integration.web import check_problem, client_of, order

ORDERS_PLACED = 200


@pytest_asyncio.fixture
async def settings(tmp_path: Path) -> Settings:
    """Settings of a stopped worker on the embedded log that has placed orders."""
    settings = make_settings("embedded://", tmp_path, partitions=1)
    async with running(settings) as app, client_of(app) as client:
        lines = [json.dumps(order(f"c-{n % 2}", f"o-{n:03}")) for n in range(ORDERS_PLACED)]
        assert (await client.post("/orders/batch", content="\n".join(lines))).status_code == 202
        await caught_up(app)
    return settings


@pytest_asyncio.fixture
async def app(settings: Settings) -> AsyncIterator[OrdersApp]:
    """Start the worker again with damage in the rows of its orders."""
    damage_rows(settings.data_dir / "stores" / "0", ORDERS.prefix, but_not=POSITIONS.prefix)
    async with running(settings) as app:
        yield app


async def all_faults(client: httpx.AsyncClient) -> str:
    return str(check_problem(await client.get("/healthz"), 503)["detail"])


async def test_rows_that_cannot_be_read_are_never_a_shorter_list(app: OrdersApp) -> None:
    async with client_of(app) as client:
        answer = await client.get("/tables/orders", params={"limit": 1000})
        assert "is damaged and cannot be read" in check_problem(answer, 503)["detail"]
        assert "is damaged and cannot be read" in await all_faults(client)
        assert "storage_errors_total 1.0" in (await client.get("/metrics")).text
        assert 'open_faults{kind="disk"} 1.0' in (await client.get("/metrics")).text
        doctor = (await client.get("/doctor")).json()
        assert [check["check"] for check in doctor if "is damaged" in check["detail"]] == ["disk"]


async def test_the_error_of_a_read_has_no_stack_trace(app: OrdersApp, caplog: pytest.LogCaptureFixture) -> None:
    async with client_of(app) as client:
        check_problem(await client.get("/tables/orders", params={"limit": 1000}), 503)
    assert not [record for record in caplog.records if record.exc_info]


async def test_positions_that_cannot_be_read_are_never_the_beginning(settings: Settings) -> None:
    damage_rows(settings.data_dir / "stores" / "0", POSITIONS.prefix)
    app = create_app(settings)
    app.finalize()
    await app.start()
    try:
        await wait_until(lambda: app.engine.metrics.storage_errors, "the damage is found")
        assert not app.engine.is_ready()
        async with client_of(app) as client:
            assert "is damaged" in await all_faults(client)
            check_problem(await client.get("/orders"), 503)
    finally:
        await app.stop()
