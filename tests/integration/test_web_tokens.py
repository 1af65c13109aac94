"""Reading what one has written: a read with a token is never older than it, or says why it cannot be answered."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import httpx
import pytest

from agents import customer_orders as project_customer_orders
from agents import orders as decide_orders
from engine.declare.agent import Agent
from engine.declare.envelope import Envelope
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.app import EngineApp
from engine.log.ports import Position
from engine.positions.tokens import encode_token
from engine.work import waiters
from streams.events.orders import OrderSummaryChanged, PlaceOrder
from tests.apps import HandlerFailed, make_settings, running, wait_until
from tests.integration.web import (
    check_problem,
    check_unavailable,
    client_of,
    find,
    go_on,
    hold_up,
    order,
    place,
    writes,
)


async def test_no_read_is_older_than_its_token_under_load(client: httpx.AsyncClient) -> None:
    await writes([client], random.Random(1), orders=100)


@pytest.mark.parametrize("path", ["/orders/o-1", "/orders/o-1/events", "/customers/c-1/orders"])
async def test_a_view_that_stays_behind_is_a_504_with_the_lag(
    app: EngineApp, client: httpx.AsyncClient, path: str
) -> None:
    await place(client, order("c-1", "o-1"))
    await hold_up(app)
    await place(client, order("c-1", "o-1"))
    token = (await client.post("/orders/o-1/cancel")).json()["token"]
    problem = check_problem(await client.get(path, params={"after": token, "timeout": "50ms"}), 504)
    assert problem["lag_records"] in (2, 3)  # the first order may have been taken before
    assert (problem["agent"], problem["topic"]) == ("decide-orders", "order-commands")
    assert problem["partition"] == app.engine.partition_for(b"o-1")
    await go_on(app)
    await find(client, path, after=token, timeout="30s")
    assert (await find(client, "/orders/o-1"))["status"] == "cancelled"


async def test_a_request_that_waits_is_told_when_its_partition_goes_away(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    await hold_up(app)
    token = await place(client, order(order_id="o-1"))
    number = app.engine.partition_for(b"o-1")
    waiting = asyncio.create_task(client.get("/orders/o-1", params={"after": token, "timeout": "30s"}))
    positions = app.engine.tasks[number].waiters
    await wait_until(lambda: positions._room.count == 1, "the request waits")
    positions.close()
    check_unavailable(await waiting)


async def test_too_many_waiting_requests_are_sent_away(
    app: EngineApp, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waiters, "WAITERS_MAX", 0)
    await hold_up(app)
    token = await place(client, order(order_id="o-1"))
    check_unavailable(await client.get("/orders/o-1", params={"after": token}))


async def test_a_token_of_no_topic_or_partition_of_ours_is_refused(client: httpx.AsyncClient) -> None:
    for position in (Position("elsewhere", 0, 1), Position("order-commands", 2, 1)):
        check_problem(await client.get("/orders/o-1", params={"after": encode_token([position])}), 422)


async def test_a_read_without_a_token_waits_for_nothing(app: EngineApp, client: httpx.AsyncClient) -> None:
    await hold_up(app)
    await place(client, order("c-1", "o-1"))
    check_problem(await client.get("/orders/o-1"), 404)
    assert (await find(client, "/customers/c-1/orders"))["items"] == []


async def test_a_worker_that_stops_lets_waiting_requests_go(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path, partitions=1)) as app, client_of(app) as client:
        await hold_up(app)
        token = await place(client, order(order_id="o-1"))
        waiting = asyncio.create_task(client.get("/orders/o-1", params={"after": token, "timeout": "30s"}))
        await wait_until(lambda: app.engine.tasks[0].waiters._room.count == 1, "the request waits")
        await asyncio.wait_for(app.stop(), 10)
        check_unavailable(await waiting)


# ---- records that are passed, and wait to be tried again


def failing_once(agent: Agent[Any], payload: type, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a handler fail the first time, after it has done its work."""
    handle, failures = agent.handlers[payload], iter([HandlerFailed("the first time")])

    def fail_once(message: Envelope[Any], work: UnitOfWork) -> None:
        handle(message, work)
        for failure in failures:
            raise failure

    monkeypatch.setitem(agent.handlers, payload, fail_once)


@pytest.mark.parametrize(
    ("agent", "payload", "path"),
    [
        (decide_orders.commands, PlaceOrder, "/orders/o-1"),
        (decide_orders.commands, PlaceOrder, "/customers/c-1/orders"),
        (project_customer_orders.projection, OrderSummaryChanged, "/customers/c-1/orders"),
    ],
)
async def test_a_read_waits_for_what_is_to_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, agent: Agent[Any], payload: type, path: str
) -> None:
    failing_once(agent, payload, monkeypatch)
    settings = make_settings("memory://", tmp_path, partitions=2, retry_backoff=0.5, retry_jitter=0.0)
    async with running(settings) as app, client_of(app) as client:
        token = await place(client, order("c-1", "o-1"))
        problem = check_problem(await client.get(path, params={"after": token, "timeout": "50ms"}), 504)
        assert "try again" in problem["detail"]
        found = await find(client, path, after=token, timeout="30s")
        assert found.get("order_id") == "o-1" or [item["order_id"] for item in found["items"]] == ["o-1"]


async def test_placing_with_wait_waits_for_what_is_to_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing_once(decide_orders.commands, PlaceOrder, monkeypatch)
    settings = make_settings("memory://", tmp_path, partitions=2, retry_backoff=0.5, retry_jitter=0.0)
    async with running(settings) as app, client_of(app) as client:
        early = await client.post("/orders", json=order("c-1", "o-1"), params={"wait": "50ms"})
        assert (early.status_code, early.json()["status"]) == (202, "processing")
        again = await client.post("/orders", json=order("c-1", "o-1"), params={"wait": "30s"})
        assert (again.status_code, again.json()["order_id"]) == (201, "o-1")
