"""Server-sent events: what is committed anywhere is told everywhere, to those who listen, and costs nobody else."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from engine.declare.envelope import Envelope
from engine.declare.errors import NotRetryable
from engine.declare.service import Service
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.app import EngineApp
from engine.faust.web_server import WebServer
from engine.web.event_stream import FRAMES_MAX
from engine.web.live import hub as hubs
from engine.web.live.changes import ITEMS_MAX
from engine.web.live.hub import LIVE, LiveHub
from streams.app import shop_services
from streams.events.orders import OrderPlaced
from streams.topics import ORDER_EVENTS
from tests.apps import DEADLINE_S, crash, make_settings, running, unique, wait_until
from tests.integration.test_web_routing import new_worker, settled, three_workers
from tests.integration.web import check_unavailable, client_of, find, order, place
from tests.kafka import KafkaBroker

Event = tuple[str, Any]


class Stream:
    """What a client has heard so far."""

    def __init__(self) -> None:
        self.events: list[Event] = []

    def items(self, event: str) -> list[Any]:
        """All items of events of this name, in the order they came."""
        return [item for name, data in self.events if name == event for item in data["items"]]

    def statuses(self, order_id: str) -> list[str]:
        """The states of an order."""
        return [item["status"] for item in self.items("orders") if item["order_id"] == order_id]

    def figures(self) -> list[Any]:
        """All figures."""
        return [data for name, data in self.events if name == "figures"]

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until it has heard enough."""
        await wait_until(condition, what)


@asynccontextmanager
async def listening(client: httpx.AsyncClient, path: str = "/live") -> AsyncIterator[Stream]:
    """Listen while the block lasts; begins when the worker has answered."""
    stream, is_open = Stream(), asyncio.Event()

    async def listen() -> None:
        async with client.stream("GET", path, timeout=DEADLINE_S) as answer:
            assert answer.status_code == 200
            assert answer.headers["Content-Type"] == "text/event-stream"
            assert answer.headers["Cache-Control"] == "no-store"
            is_open.set()
            name = ""
            async for line in answer.aiter_lines():
                key, _, value = line.partition(": ")
                if key == "event":
                    name = value
                elif key == "data":
                    stream.events.append((name, json.loads(value)))

    task = asyncio.create_task(listen())
    try:
        async with asyncio.timeout(DEADLINE_S):
            await is_open.wait()
        yield stream
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def hub_of(app: EngineApp) -> LiveHub:
    """The hub of a worker."""
    return cast(WebServer, app.web).web_app[LIVE]


async def is_at_rest(app: EngineApp) -> None:
    """Wait until nothing is left of those who listened."""
    hub = hub_of(app)
    await wait_until(lambda: not hub.everywhere and not hub.here, "all streams are gone")
    await wait_until(lambda: not app.engine.commit_listeners._listeners, "nobody listens to commits")


# ---- one worker


async def test_orders_are_told_as_they_are_committed_and_only_to_those_who_listen(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    assert not app.engine.commit_listeners._listeners
    await place(client, order("c-before", "before"))
    async with listening(client) as stream:
        await place(client, order("c-1", "o-1"))
        await stream.until(lambda: stream.statuses("o-1") == ["pending"], "the order is told")
        await client.post("/orders/o-1/cancel")
        await stream.until(lambda: stream.statuses("o-1")[-1] == "cancelled", "its end is told")
        (told,) = [item for item in stream.items("orders") if item["status"] == "pending"]
        shown = await find(client, "/orders/o-1")
        assert (told["customer_id"], told["version"], told["item_count"]) == ("c-1", 1, 2)
        assert (told["total"], told["created_at"]) == (shown["total"], shown["created_at"])
        assert not stream.statuses("before")
    await is_at_rest(app)


async def test_figures_come_every_second_and_are_those_of_the_rows(
    app: EngineApp, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "FIGURES_S", 0.05)
    async with listening(client) as stream:
        await stream.until(lambda: len(stream.figures()) >= 2, "figures come")
        first = stream.figures()[0]
        assert (first["workers"], first["partitions"]) == (1, 2)
        assert first["dead_letters"] == sum(first["sagas"].values()) == 0
        await place(client, order())
        await stream.until(lambda: any(found["records_per_second"] > 0 for found in stream.figures()), "throughput")
        await stream.until(lambda: stream.figures()[-1]["lag_records"] == 0, "all is done")
        assert stream.figures()[-1]["commits_per_second"] >= 0


async def test_many_changes_are_told_in_few_events_that_say_what_they_leave_out(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    count = 8 * ITEMS_MAX
    lines = "\n".join(json.dumps(order(order_id=f"many-{n}")) for n in range(count))

    def told() -> int:
        orders = [data for name, data in stream.events if name == "orders"]
        assert all(len(data["items"]) <= ITEMS_MAX for data in orders)
        return sum(len(data["items"]) + data["left_out"] for data in orders)

    async with listening(client) as stream:
        await client.post("/orders/batch", content=lines)
        await stream.until(lambda: told() >= count, "all are told or counted")
        assert told() == count
        assert len([name for name, _ in stream.events if name == "orders"]) < count / 10


async def test_dead_letters_and_sagas_are_told_too(tmp_path: Path) -> None:
    failing = Service("failing")

    class Broken(NotRetryable):
        pass

    @failing.agent("fail-on-orders", ORDER_EVENTS).on(OrderPlaced)
    def fail(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
        raise Broken("as always")

    settings = make_settings("memory://", tmp_path, saga="orchestration")
    services = (*shop_services(), failing)
    async with running(settings, services) as app, client_of(app) as client, listening(client) as stream:
        await place(client, order(order_id="o-1"))
        await stream.until(lambda: stream.items("dead-letters"), "the letter is told")
        letter = stream.items("dead-letters")[0]
        assert (letter["state"], letter["topic"], letter["error_type"]) == ("open", ORDER_EVENTS.name, "Broken")
        await stream.until(lambda: {"order_id": "o-1", "state": "compensated"} in stream.items("sagas"), "the saga")
        await stream.until(lambda: stream.figures() and stream.figures()[-1]["dead_letters"] > 0, "it is counted")
        assert stream.figures()[-1]["sagas"]["compensated"] == 1
        await client.post(f"/dead-letters/{letter['id']}/discard", json={"reason": "known"})
        await stream.until(lambda: stream.items("dead-letters")[-1]["state"] == "discarded", "its end is told")
        await stream.until(lambda: stream.figures()[-1]["aggregates_waiting"] == 0, "nothing waits behind it")


async def test_a_client_that_does_not_read_loses_what_waits_and_is_told_so(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    hub = hub_of(app)
    with hub.subscribed(hub.everywhere) as slow:
        for n in range(FRAMES_MAX + 1):
            hub.everywhere.publish("orders", n)
        taken = await slow.take()
    assert taken.count(b"event:") == 1
    assert b"event: resync" in taken
    await is_at_rest(app)


async def test_streams_are_limited_and_a_client_that_leaves_makes_room(
    app: EngineApp, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "FIGURES_S", 0.05)
    monkeypatch.setattr(hub_of(app).everywhere, "_limit", 1)
    async with listening(client):
        check_unavailable(await client.get("/live"))
        assert (await client.get("/orders/nobody")).status_code == 404
    await is_at_rest(app)
    async with listening(client) as stream:
        await stream.until(lambda: stream.figures(), "there is room again")


async def test_streams_end_when_the_worker_stops(tmp_path: Path) -> None:
    settings = make_settings("embedded://", tmp_path)
    async with running(settings) as app, client_of(app) as client:
        async with listening(client) as stream, listening(client, "/internal/live"):
            await stream.until(lambda: stream.figures(), "it is live")
            began = asyncio.get_running_loop().time()
            await app.stop()
            assert asyncio.get_running_loop().time() - began < 5
        check_nothing_is_left(app)


def check_nothing_is_left(app: EngineApp) -> None:
    assert not app.engine.commit_listeners._listeners
    assert not hub_of(app).everywhere
    assert not hub_of(app).here
    assert not [task for task in asyncio.all_tasks() if task.get_name().startswith("live")]


async def test_a_listener_that_fails_does_no_harm_to_commits(app: EngineApp, client: httpx.AsyncClient) -> None:
    def fail(number: int, changed: object) -> None:
        raise RuntimeError("a listener failed")

    app.engine.commit_listeners.add(fail)
    token = await place(client, order(order_id="o-1"))
    assert (await find(client, "/orders/o-1", after=token))["status"] == "pending"
    assert app.engine.metrics.commit_failures == 0


async def test_figures_follow_a_partition_that_begins_anew(
    app: EngineApp, client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hubs, "FIGURES_S", 0.05)
    async with listening(client) as stream:
        await stream.until(lambda: stream.figures(), "it is live")
        app.engine.tasks[0].life.fail(RuntimeError("as after a failed commit"))
        await wait_until(app.engine.is_ready, "the partition is back")
        seen = len(stream.figures())
        await stream.until(lambda: len(stream.figures()) > seen + 2, "figures go on")
        assert stream.figures()[-1]["partitions"] == 2


# ---- several workers


async def test_every_worker_tells_of_all_partitions(private_kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    async with three_workers(private_kafka_broker, tmp_path) as (apps, clients):
        async with listening(clients[0]) as one, listening(clients[1]) as other:
            streams = (one, other)
            await wait_until(lambda: all(s.figures() and s.figures()[-1]["workers"] == 3 for s in streams), "all hear")
            assert [s.figures()[-1]["partitions"] for s in streams] == [6, 6]
            ids = [unique("o") for _ in range(30)]
            for order_id in ids:
                await place(clients[2], order(order_id=order_id))
            assert len({apps[0].engine.partition_for(order_id.encode()) for order_id in ids}) > 3
            for stream in streams:
                await wait_until(lambda s=stream: all(s.statuses(o) for o in ids), "all orders are told")  # type: ignore[misc]
                assert [stream.statuses(order_id) for order_id in ids] == [["pending"]] * 30

            before = [sum(name == "resync" for name, _ in s.events) for s in streams]
            await crash(apps[2])
            await settled(apps[:2])
            await wait_until(lambda: all(s.figures()[-1]["workers"] == 2 for s in streams), "both know that it is gone")
            newcomer = new_worker(private_kafka_broker, tmp_path / "newcomer")
            await newcomer.start()
            try:
                await settled([*apps[:2], newcomer])
                await wait_until(lambda: all(s.figures()[-1]["workers"] == 3 for s in streams), "the newcomer is heard")
                after = [sum(name == "resync" for name, _ in s.events) for s in streams]
                assert all(now > then for now, then in zip(after, before, strict=True))
                late = [unique("o") for _ in range(20)]
                for order_id in late:
                    await place(clients[0], order(order_id=order_id))
                for stream in streams:
                    await wait_until(lambda s=stream: all(s.statuses(o) for o in late), "late ones are told")  # type: ignore[misc]
            finally:
                await newcomer.stop()
        for app in apps[:2]:
            await is_at_rest(app)
