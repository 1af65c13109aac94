"""The served contracts, and whether what is in the topics after a working day is what they say."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.failures.topics import DEAD_LETTERS
from engine.faust.app import EngineApp
from engine.log.ports import Record
from streams.topics import INTEGRATION_EVENTS, ORDER_COMMANDS
from tests.apps import at_rest, make_settings, publish, read_topic, running
from tests.contracts import check_message, documents
from tests.integration.web import find, order

BROKEN = (b"this is no JSON", b'{"neither": "is this an envelope"}')


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[EngineApp]:
    settings = make_settings("memory://", tmp_path, saga="orchestration", retry_count=0, saga_retries=0)
    async with running(settings) as app:
        yield app


async def working_day(app: EngineApp, client: httpx.AsyncClient) -> None:
    """Let orders go through their sagas, be cancelled, refused, run out of stock, and fail for good."""
    token = (await client.put("/inventory/SKU-1", json={"quantity": 10})).json()["token"]
    await find(client, "/inventory/SKU-1", after=token)
    await client.put("/inventory/SKU-1", json={"quantity": 12})
    mail = {"email": "customer@example.com", "country": "France"}
    for body in (order("c-1", "o-1", **mail), order("c-1", "o-2"), order("c-2", "o-3", items=out_of_stock())):
        await client.post("/orders", json=body, headers={"Idempotency-Key": body["order_id"]})
    await at_rest(app)
    await client.post("/orders/o-1/ship")
    await client.post("/orders/o-2/cancel", json={"reason": "changed my mind"})
    await client.post("/orders/o-2/confirm")
    await client.post("/sagas/o-2/resume")
    await publish(app, ORDER_COMMANDS, "o-4", *BROKEN)
    await at_rest(app)
    retried, discarded = (await find(client, "/dead-letters"))["items"]
    await client.post(f"/dead-letters/{retried['id']}/retry")
    await client.post(f"/dead-letters/{discarded['id']}/discard", json={"reason": "a test"})
    await at_rest(app)


def out_of_stock() -> list[dict[str, Any]]:
    price = {"amount": "2.00", "currency": "USD"}
    return [
        {"product_id": "SKU-1", "quantity": 1, "price": price},
        {"product_id": "SKU-9", "quantity": 1, "price": price},
    ]


def name_of(topic: str, record: Record) -> str:
    """Which message of the contract a record is."""
    value = json.loads(record.value or b"")
    return str(value["event_type" if topic == INTEGRATION_EVENTS.name else "eventType"])


async def test_every_record_is_as_the_contract_says(app: EngineApp, client: httpx.AsyncClient) -> None:
    await working_day(app, client)
    _, asyncapi = documents(app)
    seen: set[str] = set()
    for topic in app.engine.topics.values():
        messages = asyncapi["channels"][topic.name]["messages"]
        for record in await read_topic(app, topic):
            if topic != DEAD_LETTERS and record.value in BROKEN:
                continue
            name = "dead-letter" if topic == DEAD_LETTERS else name_of(topic.name, record)
            assert name in messages, f"{name} in {topic.name} is not in the contract"
            payload = None if name == "dead-letter" else json.loads(record.value or b"")
            headers = {key: (value or b"").decode() for key, value in record.headers}
            check_message(asyncapi, messages[name], payload, headers)
            seen.add(f"{topic.name}: {name}")
    assert len(seen) > 25


@pytest.mark.parametrize("path", ["/openapi.json", "/asyncapi.json"])
async def test_a_contract_is_served_once(client: httpx.AsyncClient, path: str) -> None:
    answer = await client.get(path)
    assert (answer.status_code, answer.headers["Content-Type"]) == (200, "application/json")
    assert answer.json()["info"]["version"] == version("orders-events")
    tag = answer.headers["ETag"]
    for known in (tag, f'"other", {tag}', f"W/{tag}", "*"):
        again = await client.get(path, headers={"If-None-Match": known})
        assert (again.status_code, again.content, again.headers["ETag"]) == (304, b"", tag)
    other = await client.get(path, headers={"If-None-Match": '"other"'})
    assert (other.status_code, other.content) == (200, answer.content)


async def test_the_served_contracts_are_those_of_this_application(app: EngineApp, client: httpx.AsyncClient) -> None:
    openapi, asyncapi = documents(app)
    assert (await client.get("/openapi.json")).json() == openapi
    assert (await client.get("/asyncapi.json")).json() == asyncapi


async def test_a_repeated_request_is_checked_like_the_first_one(client: httpx.AsyncClient) -> None:
    key = {"Idempotency-Key": "k-1"}
    assert (await client.post("/orders", json=order("c-1"), headers=key)).status_code == 202
    again = await client.post("/orders", json=order("c-1"), headers={**key, "X-Correlation-Id": "x" * 129})
    assert (again.status_code, again.json()["errors"][0]["field"]) == (422, "X-Correlation-Id")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/orders/o-1?timeout=soon"),
        ("GET", "/analytics/summary?timeout="),
        ("POST", "/dead-letters/retry"),
        ("POST", "/dead-letters/discard"),
    ],
)
async def test_what_cannot_be_used_is_refused_even_when_it_would_not_be_needed(
    client: httpx.AsyncClient, method: str, path: str
) -> None:
    body = {"reason": "a test", "all": True} if path.endswith("discard") else {}
    headers = {"X-Correlation-Id": "x" * 129} if method == "POST" else {}
    answer = await client.request(method, path, json=body if method == "POST" else None, headers=headers)
    assert answer.status_code == 422
    assert answer.json()["errors"][0]["field"] in ("timeout", "X-Correlation-Id")
