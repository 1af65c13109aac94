"""Every route that shows what a request may have changed takes a token, waits for it, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import pytest_asyncio
from aiohttp import web

from engine.declare.service import Service
from engine.faust.app import EngineApp
from engine.log.ports import Position
from engine.positions.tokens import encode_token
from streams.app import shop_services
from tests.apps import make_settings, running, wait_until
from tests.integration.web import all_of, check_problem, client_of, order, place

LOG = "it shows the log itself: what was accepted is in it"
STORED = "it shows rows as they are stored, whoever writes them; each kind has a view of its own"
WORKER = "it shows how the worker stands, which no request changes"
CONTRACT = "it is the same for as long as the worker lives"
AUDIT = "it shows what was compared, up to a cut of its own"
EXCEPTIONS = {
    "/": CONTRACT,
    "/assets/{name}": CONTRACT,
    "/asyncapi.json": CONTRACT,
    "/audit/orders/{order_id}": AUDIT,
    "/audit/partitions/{number}": AUDIT,
    "/doctor": WORKER,
    "/healthz": WORKER,
    "/live": "it tells of what is committed from now on",
    "/metrics": WORKER,
    "/openapi.json": CONTRACT,
    "/partitions/{number}/repair": "it shows how a repair goes on, which no token stands for",
    "/readyz": WORKER,
    "/tables": STORED,
    "/tables/{name}": STORED,
    "/tables/{name}/rebuild": "it shows how a rebuild goes on, which no token stands for",
    "/tables/{name}/{key}": STORED,
    "/topics": LOG,
    "/topics/{name}/records": LOG,
}
"""Routes that take no token, and why. What workers ask each other (`/internal/`) is asked once the token is reached."""
KEYS = {"order_id": "o-1", "customer_id": "c-1", "product_id": "SKU-1", "correlation_id": "request-1", "id": "1-1"}
QUERIES = {"/orders/{order_id}/state": {"version": "1"}}

ALL = {route[1] for service in shop_services() for route in service.routes if route[0] == "GET"}
FRESH = sorted(path for path in ALL if path not in EXCEPTIONS and not path.startswith("/internal/"))


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[EngineApp]:
    """Run the whole application in memory."""
    async with running(make_settings("memory://", tmp_path)) as app:
        yield app


def filled(path: str) -> str:
    """The path with a key for each parameter; a new kind of key has to be added above."""
    return re.sub(r"{(\w+)}", lambda found: KEYS[found[1]], path)


def beyond(app: EngineApp) -> str:
    """A token that no agent of any topic will reach."""
    numbers = range(app.engine.settings.partitions)
    return encode_token(Position(topic, number, 1_000_000) for topic in app.engine.topics for number in numbers)


def waiting(app: EngineApp) -> int:
    """How many requests wait."""
    tasks = app.engine.tasks.values()
    left = sum(len(entries) for task in tasks for entries in task.waiters._waiting.values())
    assert {left} == {task.waiters._room.count for task in tasks}  # one room for all of a worker
    return left


def test_what_is_excepted_has_a_reason_and_no_other_way() -> None:
    assert all(EXCEPTIONS.values())
    assert len(FRESH) > 15
    assert not any(path.startswith(("/orders", "/customers", "/analytics", "/dead-letters")) for path in EXCEPTIONS)


@pytest.mark.parametrize("path", FRESH)
async def test_a_view_waits_for_its_token_says_how_far_it_is_behind_and_leaves_nothing_behind(
    app: EngineApp, client: httpx.AsyncClient, path: str
) -> None:
    query = {"after": beyond(app), "timeout": "20ms", **QUERIES.get(path, {})}
    problem = check_problem(await client.get(filled(path), params=query), 504)
    assert problem["lag_records"] > 900_000
    assert problem["agent"] in app.engine.agents
    assert problem["topic"] == app.engine.agents[problem["agent"]].name
    assert problem["partition"] in range(app.engine.settings.partitions)
    await wait_until(lambda: not waiting(app), "nobody waits", 1)  # of several waits the first one answers
    for changes, field in (
        ({"after": "x"}, "after"),
        ({"timeout": "soon"}, "timeout"),
        ({"timeout": "31s"}, "timeout"),
    ):
        problem = check_problem(await client.get(filled(path), params=query | changes), 422)
        assert [error["field"] for error in problem["errors"]] == [field]


@pytest.mark.parametrize("path", FRESH)
async def test_a_view_whose_client_goes_away_waits_no_longer(
    app: EngineApp, client: httpx.AsyncClient, path: str
) -> None:
    query = {"after": beyond(app), "timeout": "30s", **QUERIES.get(path, {})}
    asked = asyncio.create_task(client.get(filled(path), params=query))
    await wait_until(lambda: waiting(app), "the request waits")
    asked.cancel()
    await wait_until(lambda: not waiting(app), "nobody waits", 5)


async def test_every_view_is_as_new_as_the_token_of_a_write(app: EngineApp, client: httpx.AsyncClient) -> None:
    stocked = (await client.put("/inventory/SKU-1", json={"quantity": 7})).json()["token"]
    headers = {"X-Correlation-Id": KEYS["correlation_id"]}
    token = all_of(stocked, await place(client, order("c-1", "o-1", email="a@example.com"), **headers))
    for path in FRESH:
        answer = await client.get(filled(path), params={"after": token, "timeout": "20s", **QUERIES.get(path, {})})
        missing = path in ("/dead-letters/{id}", "/sagas/{order_id}")
        assert answer.status_code == (404 if missing else 200), f"{path}: {answer.text}"
        assert (
            missing
            or '"items":[]' not in answer.text
            or path.startswith(("/dead-letters", "/aggregates", "/analytics", "/sagas"))
        ), path


async def test_a_change_goes_on_although_its_client_goes_away(tmp_path: Path) -> None:
    begun, go_on, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    service = Service("slow")

    @service.route("POST", "/slow")
    async def change(request: web.Request) -> web.StreamResponse:
        begun.set()
        await go_on.wait()
        done.set()
        return web.Response()

    async with running(make_settings("memory://", tmp_path), [service]) as app, client_of(app) as client:
        asked = asyncio.create_task(client.post("/slow"))
        await begun.wait()
        asked.cancel()
        await asyncio.wait([asked])
        await wait_until(lambda: not _connections(app), "the worker knows that the client is gone", 5)
        go_on.set()
        await asyncio.wait_for(done.wait(), 5)


def _connections(app: EngineApp) -> int:
    """How many clients are connected to the worker."""
    server = cast(Any, app.web)._runner.server
    return len(server.connections)
