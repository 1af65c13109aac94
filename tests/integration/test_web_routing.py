"""Any worker answers for any key: three workers on Kafka, partitions on the move, and owners that cannot be reached."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import httpx
import pytest

from engine.declare.service import Service
from engine.faust.app import EngineApp
from engine.faust.assignor import NumberAssignor
from engine.log.ports import Position
from engine.positions.tokens import encode_token
from engine.web import publish
from streams.app import create_app
from tests.apps import make_settings, running, stop, stop_cut_off, wait_until
from tests.chaos.faults import Worker
from tests.integration.web import check_problem, check_unavailable, client_of, find, order, place, too_expensive, writes
from tests.kafka import KafkaBroker, unused_port

PARTITIONS = 6
SESSION_TIMEOUT_S = 6.0
MARGIN_S = 10.0  # for heartbeats, the rebalance and restoring, on a busy machine


def new_worker(
    broker: KafkaBroker, folder: Path, services: Sequence[Service] | None = None, **changes: Any
) -> EngineApp:
    """Make a worker with a data folder of its own, as on another machine; of all services unless some are given."""
    settings = make_settings(
        f"kafka://{broker.bootstrap}",
        folder,
        app_id="orders",
        partitions=PARTITIONS,
        session_timeout=SESSION_TIMEOUT_S,
        **changes,
    )
    app = create_app(settings, services=services)
    app.finalize()
    return app


def assignor(app: EngineApp) -> NumberAssignor:
    """What a worker believes about who owns what."""
    return cast(NumberAssignor, app.assignor)


async def settled(apps: Sequence[EngineApp]) -> None:
    """Wait until every partition is restored at exactly one of these workers, and all know it."""

    def is_settled() -> bool:
        numbers = [number for app in apps for number in app.engine.numbers]
        return sorted(numbers) == list(range(PARTITIONS)) and all(
            app.engine.is_ready() and set(assignor(app).external_topic_distribution) == urls for app in apps
        )

    urls = {app.engine.settings.public_url for app in apps}
    await wait_until(is_settled, f"{len(apps)} workers share the partitions", 90)


@asynccontextmanager
async def three_workers(
    broker: KafkaBroker, folder: Path, services: Sequence[Service] | None = None, **changes: Any
) -> AsyncIterator[tuple[list[EngineApp], list[httpx.AsyncClient]]]:
    """Run three workers, and give them with a client of each."""
    apps = [new_worker(broker, folder / str(index), services, **changes) for index in range(3)]
    async with AsyncExitStack() as stack:
        for app in apps:
            stack.push_async_callback(stop, app)
        await asyncio.gather(*(app.start() for app in apps))
        await settled(apps)
        yield apps, [await stack.enter_async_context(client_of(app)) for app in apps]


async def test_every_worker_answers_for_every_key(private_kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    async with three_workers(private_kafka_broker, tmp_path) as (apps, clients):
        assert all(app.engine.numbers for app in apps)
        await writes(clients, random.Random(2), orders=100)

        for path in [f"/orders/load-{n}" for n in range(30)] + ["/orders/nobody", "/customers/nobody/orders"]:
            for suffix in ("", "/events", "/state?version=1") if path.startswith("/orders") else ("",):
                answers = [await client.get(f"{path}{suffix}") for client in clients]
                assert len({(answer.status_code, answer.text) for answer in answers}) == 1
                assert {answer.status_code for answer in answers} == {404 if path == "/orders/nobody" else 200}
        check_problem(await clients[0].get("/orders/nobody"), 404)
        await check_lists(clients)
        await check_that_nobody_waits_for_clients_that_are_gone(apps, clients)

        for n, client in enumerate(clients):
            for key in range(6):
                headers = {"Idempotency-Key": f"key-{key}"}
                one, other = await asyncio.gather(
                    client.post("/orders", json=order(f"c-same-{n}"), headers=headers),
                    clients[(n + 1) % 3].post("/orders?wait=20s", json=order(f"c-same-{n}"), headers=headers),
                )
                assert (one.status_code, other.status_code) == (202, 201)
                assert one.json()["order_id"] == other.json()["order_id"]
                changed = await clients[(n + 2) % 3].post(
                    "/orders", json=order(f"c-same-{n}", country="x"), headers=headers
                )
                check_problem(changed, 409)
            listed = await find(
                clients[n - 1], f"/customers/c-same-{n}/orders", after=one.json()["token"], timeout="30s"
            )
            assert [found["version"] for found in listed["items"]] == [1] * 6

        for n, client in enumerate(clients * 4):
            placed = await client.post("/orders?wait=20s", json=order("c-wait", f"wait-{n}"))
            assert (placed.status_code, placed.json()["order_id"]) == (201, f"wait-{n}")
            assert placed.headers["Location"] == f"/orders/wait-{n}"
            refused = await client.post("/orders?wait=20s", json=order("another", f"wait-{n}"))
            assert check_problem(refused, 409)["reason"] == "already_placed"
            unpayable = await client.post("/orders?wait=20s", json=too_expensive(f"unpayable-{n}"))
            assert check_problem(unpayable, 422)["reason"] == "amount_out_of_range"

        lines = "\n".join(json.dumps(order("c-batch", f"batch-{n}")) for n in range(50))
        token = (await clients[0].post("/orders/batch", content=lines)).json()["token"]
        for client in clients:
            listed = await find(client, "/customers/c-batch/orders", after=token, timeout="30s", limit=1000)
            assert {found["order_id"] for found in listed["items"]} == {f"batch-{n}" for n in range(50)}

        tables = [await find(client, "/tables") for client in clients]
        orders = {json.dumps(table) for found in tables for table in found["items"] if table["name"] == "orders"}
        assert len(orders) == 1
        assert json.loads(orders.pop())["rows"] == 100 + 18 + 24 + 50
        pages = [await _all_rows(client, "orders") for client in clients]
        assert pages[0] == pages[1] == pages[2]
        assert len(pages[0]) == 100 + 18 + 24 + 50
        for client in clients:
            assert (await find(client, "/tables/orders/batch-7"))["customer_id"] == "c-batch"
            check_problem(await client.get("/tables/orders/nobody"), 404)
            assert len((await find(client, "/topics/order-events/records", limit=7))["items"]) == 7
            assert [check for check in await find(client, "/doctor") if not check["ok"]] == []


async def check_lists(clients: Sequence[httpx.AsyncClient]) -> None:
    """Whoever is asked shows the same lists, and goes on where another one has stopped."""
    paths = (
        "/orders?limit=1000",
        "/orders?limit=9&status=cancelled",
        "/orders?from=2099-01-01",
        "/orders/load-7/story",
    )
    story = await find(clients[0], "/orders/load-7/story")
    for path in (*paths, f"/stories/{story['correlation_id']}", "/customers/c-1/orders?status=cancelled&limit=3"):
        answers = [await client.get(path) for client in clients]
        assert {answer.status_code for answer in answers} == {200}, path
        assert len({answer.text for answer in answers}) == 1, path
    listed = (await find(clients[0], "/orders", limit=1000))["items"]
    assert {item["order_id"] for item in listed} == {f"load-{n}" for n in range(100)}
    seen: list[Any] = []
    cursor: str | None = ""
    turn = 0
    while cursor is not None:
        page = await find(clients[turn % 3], "/orders", limit=7, cursor=cursor)
        seen += page["items"]
        cursor, turn = page["next_cursor"], turn + 1
    assert seen == listed
    assert (await find(clients[1], f"/stories/{story['correlation_id']}"))["items"] == [story]


async def check_that_nobody_waits_for_clients_that_are_gone(
    apps: Sequence[EngineApp], clients: Sequence[httpx.AsyncClient]
) -> None:
    """A client that goes away takes along what waits for its sake, at the owner too."""

    def waiting() -> int:
        return sum(max(task.waiters._room.count for task in app.engine.tasks.values()) for app in apps)

    never = encode_token(Position("order-commands", number, 1_000_000) for number in range(PARTITIONS))
    paths = [f"/orders/load-{n}" for n in range(10)] + ["/orders"]
    asked = [
        asyncio.create_task(client.get(path, params={"after": never, "timeout": "30s"}))
        for client in clients
        for path in paths
    ]
    await wait_until(lambda: waiting() == 3 * (10 + PARTITIONS), "all requests wait at the owners")
    for request in asked:
        request.cancel()
    await wait_until(lambda: not waiting(), "nobody waits", 10)


async def _all_rows(client: httpx.AsyncClient, table: str) -> list[str]:
    rows: list[str] = []
    cursor = ""
    while True:
        page = await find(client, f"/tables/{table}", limit=37, cursor=cursor)
        rows += [json.dumps(item) for item in page["items"]]
        if page["next_cursor"] is None:
            return rows
        cursor = page["next_cursor"]


async def test_while_partitions_move_nothing_is_missing(private_kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    statuses: Counter[int] = Counter()
    moving = True

    async def read_on(client: httpx.AsyncClient) -> None:
        choice = random.Random(3)
        while moving:
            # A list asks everybody, and so is seldom asked for.
            ways = ("/orders/o-{}", "/orders/o-{}/events", "/tables/orders/o-{}", "/orders?limit=1000")
            (path,) = choice.choices(ways, (10, 10, 10, 1))
            try:
                answer = await client.get(path.format(choice.randrange(200)))
            except httpx.TransportError:  # this worker has stopped
                return
            statuses[answer.status_code] += 1
            if answer.status_code != 200:
                check_unavailable(answer)
                await asyncio.sleep(0.01)
            elif "?" in path:
                assert len(answer.json()["items"]) == 200, "a list is complete, or unavailable"

    async with three_workers(private_kafka_broker, tmp_path) as (apps, clients):
        lines = "\n".join(json.dumps(order(f"c-{n % 7}", f"o-{n}")) for n in range(200))
        token = (await clients[0].post("/orders/batch", content=lines)).json()["token"]
        await find(clients[0], "/customers/c-0/orders", after=token, timeout="30s")
        await find(clients[0], "/orders/o-0", after=token)
        await find(clients[0], "/orders", after=token, timeout="30s")
        readers = [asyncio.create_task(read_on(client)) for client in clients]
        await stop(apps[2])
        await settled(apps[:2])
        newcomer = new_worker(private_kafka_broker, tmp_path / "newcomer")  # restores everything from the changelogs
        await newcomer.start()
        async with client_of(newcomer) as client:
            readers.append(asyncio.create_task(read_on(client)))
            await settled([*apps[:2], newcomer])
            moving = False
            await asyncio.gather(*readers)
            for n in range(200):
                await find(client, f"/orders/o-{n}")
        await stop(newcomer)
    assert set(statuses) <= {200, 503}
    assert statuses[200] > 100


async def test_a_worker_that_is_killed_is_noticed_within_the_session_timeout(
    private_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    apps = [new_worker(private_kafka_broker, tmp_path / str(index)) for index in range(2)]
    settings = {"ORDERS_PARTITIONS": str(PARTITIONS), "ORDERS_SESSION_TIMEOUT": str(SESSION_TIMEOUT_S)}
    broker = f"kafka://{private_kafka_broker.bootstrap}"
    killed = Worker("killed", tmp_path / "killed", broker, settings | {"ORDERS_SAGA": "none"})
    async with AsyncExitStack() as stack:
        stack.callback(killed.kill)
        killed.start()
        for app in apps:
            stack.push_async_callback(stop, app)
        await asyncio.gather(*(app.start() for app in apps))
        await wait_until(lambda: _share(apps, killed.url), "all three have partitions", 90)
        clients = [await stack.enter_async_context(client_of(app)) for app in apps]
        lines = "\n".join(json.dumps(order(f"c-{n % 7}", f"o-{n}")) for n in range(60))
        token = (await clients[0].post("/orders/batch", content=lines)).json()["token"]
        await _all_answer(clients, token)

        killed.kill()
        began = time.monotonic()
        await wait_until(lambda: not _share(apps, killed.url), "the others know", SESSION_TIMEOUT_S + MARGIN_S)
        await settled(apps)
        await _all_answer(clients, token)
        assert time.monotonic() - began < SESSION_TIMEOUT_S + 2 * MARGIN_S
        token = (await clients[1].post("/orders/batch", content=lines.replace("o-", "p-"))).json()["token"]
        assert len((await find(clients[0], "/orders", after=token, timeout="30s", limit=1000))["items"]) == 120


def _share(apps: Sequence[EngineApp], url: str) -> bool:
    """Whether these workers believe that they share the partitions with another one."""
    everyone = {url, *(app.engine.settings.public_url for app in apps)}
    return all(set(assignor(app).external_topic_distribution) == everyone for app in apps)


async def _all_answer(clients: Sequence[httpx.AsyncClient], token: str) -> None:
    """Wait until each worker answers for every order; before, an order is unavailable, and never missing."""
    for client in clients:
        for n in range(60):
            path = f"/orders/o-{n}?after={token}&timeout=20s"
            while (answer := await client.get(path)).status_code != 200:
                check_unavailable(answer)
                await asyncio.sleep(0.05)


# ---- a broker that does not answer


async def test_a_request_that_nobody_knows_the_fate_of_can_be_sent_again(
    private_kafka_broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(publish, "PUBLISH_TIMEOUT_S", 1.0)
    app = new_worker(private_kafka_broker, tmp_path)
    await app.start()
    try:
        await settled([app])
        async with client_of(app) as client:
            await asyncio.to_thread(private_kafka_broker.stop)
            headers = {"Idempotency-Key": "k"}
            problem = check_unavailable(await client.post("/orders", json=order("c-1"), headers=headers))
            assert "Idempotency-Key" in problem["detail"]
            checks = {check["check"]: check["ok"] for check in await find(client, "/doctor")}
            assert not checks["broker"]
            assert (await client.get("/metrics")).status_code == 200
            assert (await client.get("/healthz")).status_code == 200
            await asyncio.to_thread(private_kafka_broker.start)
            answer = await client.post("/orders?wait=10s", json=order("c-1"), headers=headers)
            while answer.status_code in (202, 503):
                answer = await client.post("/orders?wait=10s", json=order("c-1"), headers=headers)
            assert answer.status_code == 201
            token = await place(client, order("c-1", "another"))
            listing = {"after": token, "timeout": "10s"}
            answer = await client.get("/customers/c-1/orders", params=listing)
            while answer.status_code == 503:  # partitions settle what the broker may have left, and start anew for that
                await asyncio.sleep(0.1)
                answer = await client.get("/customers/c-1/orders", params=listing)
            assert len(answer.json()["items"]) == 2, answer.text
    finally:
        await stop_cut_off(app)


# ---- owners that do not answer


@pytest.mark.parametrize(
    "path", ["/orders/{}", "/orders/{}/events", "/customers/{}/orders", "/tables/orders/{}", "/tables/orders"]
)
async def test_a_partition_without_an_owner_is_unavailable(tmp_path: Path, path: str) -> None:
    async with running(make_settings("memory://", tmp_path, partitions=2)) as app, client_of(app) as client:
        key = next(f"o-{n}" for n in range(100) if app.engine.partition_for(f"o-{n}".encode()) == 1)
        await _own(app, {0})
        check_unavailable(await client.get(path.format(key)))
        assignor(app).external_topic_distribution = {f"http://127.0.0.1:{unused_port()}": {"order-commands": [1]}}
        check_unavailable(await client.get(path.format(key)))
        assignor(app).external_topic_distribution = {app.engine.settings.public_url: {"order-commands": [1]}}
        check_unavailable(await client.get(path.format(key)))
        answer = await client.post("/orders?wait=1s", json=order(key, key))
        assert answer.status_code == 202, "a command needs no owner"


async def test_two_workers_that_take_each_other_for_the_owner_do_not_ask_for_ever(tmp_path: Path) -> None:
    settings = [make_settings("memory://", tmp_path / str(index), partitions=2) for index in range(2)]
    async with running(settings[0]) as one, running(settings[1]) as other, client_of(one) as client:
        key = next(f"o-{n}" for n in range(100) if one.engine.partition_for(f"o-{n}".encode()) == 1)
        for app, peer in ((one, other), (other, one)):
            await _own(app, {0})
            assignor(app).external_topic_distribution = {peer.engine.settings.public_url: {"order-commands": [1]}}
        check_unavailable(await client.get(f"/orders/{key}"))
        check_unavailable(await client.get(f"/orders/{key}", headers={"X-Orders-Forwarded": "1"}))


async def _own(app: EngineApp, numbers: set[int]) -> None:
    """Take partitions away as a rebalance does."""
    await app.engine.revoked()
    app.consumer_generation_id += 1
    await app.engine.assigned(numbers, app.consumer_generation_id)
    await wait_until(app.engine.is_ready, "the partitions are restored")
