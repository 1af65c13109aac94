"""Sagas over HTTP: the view with tokens, what is stuck, resuming it, and the figure for Prometheus."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from domain.sagas.state import Saga
from engine.declare.envelope import Metadata, encode_envelope, new_envelope
from engine.faust.app import EngineApp
from streams.events.inventory import ShipStock
from streams.topics import INVENTORY_COMMANDS
from tables.sagas import SAGAS
from tests.apps import caught_up, make_settings, publish, row, running, wait_until
from tests.integration.web import check_problem, order
from tests.unit.test_envelope import TEN_O_CLOCK


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[EngineApp]:
    async with running(make_settings("memory://", tmp_path, saga="orchestration", saga_retries=0)) as app:
        yield app


async def confirmed(app: EngineApp, client: httpx.AsyncClient) -> None:
    """Take order o-1 through its saga."""
    token = (await client.put("/inventory/SKU-1", json={"quantity": 10})).json()["token"]
    assert (await client.get("/inventory/SKU-1", params={"after": token})).json()["available"] == 10
    await client.post("/orders", json=order("c-1", "o-1"))
    await reached(app, "completed")


async def reached(app: EngineApp, state: str) -> None:
    """Wait until the saga of o-1 stands there."""

    def stands() -> bool:
        saga: Saga | None = row(app, SAGAS, "o-1")
        return saga is not None and saga.state == state

    await wait_until(stands, f"the saga is {state}")


async def test_a_saga_can_be_read_as_soon_as_its_order_is_placed(client: httpx.AsyncClient) -> None:
    token = (await client.post("/orders", json=order("c-1", "o-1"))).json()["token"]
    answer = await client.get("/sagas/o-1", params={"after": token})
    assert answer.status_code == 200
    shown = answer.json()
    assert (shown["order_id"], shown["style"], shown["version"]) == ("o-1", "orchestration", 1)
    assert shown["timeline"][0]["type"] == "order.placed"


async def test_there_is_no_saga_without_an_order(client: httpx.AsyncClient) -> None:
    answer = await client.get("/sagas/nobody")
    assert (answer.status_code, answer.headers["content-type"]) == (404, "application/problem+json")


async def test_a_stuck_saga_is_seen_listed_counted_and_resumed(app: EngineApp, client: httpx.AsyncClient) -> None:
    await confirmed(app, client)
    ship = new_envelope(
        ShipStock("SKU-1", "o-1"),
        event_id="too-early",
        aggregate_id="SKU-1",
        timestamp=TEN_O_CLOCK,
        metadata=Metadata(),
    )
    await publish(app, INVENTORY_COMMANDS, "SKU-1", encode_envelope(ship))
    await caught_up(app)
    await client.post("/orders/o-1/cancel", json={"reason": "changed my mind"})
    await reached(app, "compensation_failed")
    assert (await client.get("/sagas/o-1")).json()["state"] == "compensation_failed"
    listed = (await client.get("/tables/failed-sagas")).json()["items"]
    assert [(item["key"], item["row"]["error"]) for item in listed] == [("o-1", "already_shipped")]
    (shown,) = (await client.get("/sagas?state=compensation_failed")).json()["items"]
    assert shown.pop("failed_at")
    assert shown == {
        "order_id": "o-1",
        "state": "compensation_failed",
        "step": "reserve",
        "line": 1,
        "error": "already_shipped",
    }
    check_problem(await client.get("/sagas?state=running"), 422)
    figures = (await client.get("/metrics")).text.splitlines()
    assert 'saga_active{state="compensation_failed"} 1.0' in figures
    assert 'saga_oldest_seconds{state="compensation_failed"} 0.0' not in figures
    tried = (await client.get("/sagas/o-1")).json()["steps"][1]["compensation"]["asked_at"]
    answer = await client.post("/sagas/o-1/resume")
    assert answer.status_code == 202
    assert answer.headers["Location"] == "/sagas/o-1"
    resumed = (await client.get("/sagas/o-1", params={"after": answer.json()["token"]})).json()
    assert resumed["steps"][1]["compensation"]["asked_at"] > tried


async def test_an_ended_saga_counts_no_more(app: EngineApp, client: httpx.AsyncClient) -> None:
    await confirmed(app, client)
    figures = [line for line in (await client.get("/metrics")).text.splitlines() if line.startswith("saga_active{")]
    assert figures == [
        'saga_active{state="compensating"} 0.0',
        'saga_active{state="compensation_failed"} 0.0',
        'saga_active{state="running"} 0.0',
    ]
