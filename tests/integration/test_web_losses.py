"""Lost records over HTTP and the command line: health, tokens, metrics, and accepting the loss at any worker."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import httpx
import pytest

from engine.declare.topic import Topic
from engine.faust.app import EngineApp
from engine.log.ports import Position
from engine.positions.acceptance import accept_losses
from engine.positions.positions import ACCEPTED_LOSSES
from engine.positions.tokens import decode_token, encode_token
from engine.web.routes import health
from engine.web.routes import losses as loss_commands
from engine.web.routes import tables as table_views
from engine.web.routes import topics as topic_views
from streams.settings import Settings
from streams.topics import ORDER_COMMANDS, ORDER_REQUESTS
from tables.orders.requests import request_key
from tests.apps import DURABLE_TRANSPORTS, connected, make_settings, running, wait_until
from tests.e2e.processes import ORDERS, Site
from tests.integration.test_engine_losses import KEY, READER, Two, details, numbers, texts
from tests.integration.test_web_routing import three_workers
from tests.integration.web import check_problem, client_of, find, go_on, hold_up, order, own_broker_url
from tests.kafka import KafkaBroker
from tests.lost_records import admin_of, delete_topic, make_anew, remove_before, settings_of, until_gone


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings("embedded://", tmp_path)


@pytest.fixture(params=DURABLE_TRANSPORTS)
def durable_settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(own_broker_url(request), tmp_path)


async def command_line(app: EngineApp, folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """What `orders` prints beside a worker in this process."""
    site = Site(folder, app.engine.settings.web_port)
    return await asyncio.to_thread(site.run, *arguments, command=ORDERS)


async def test_lost_commands_are_named_wherever_somebody_looks_and_their_tokens_are_gone(
    settings: Settings, tmp_path: Path
) -> None:
    async with running(settings) as app, client_of(app) as client:
        number = app.engine.partition_for(b"o-1")
        await hold_up(app)
        tokens = [(await client.post("/orders", json=order(order_id="o-1"))).json()["token"] for _ in range(2)]
        await remove_before(app.engine.broker, ORDER_COMMANDS.name, number, 2)
        await go_on(app)
        missing = f"order-commands/{number}: 2 records, offsets 0 to 1, were removed before decide-orders had read them"
        await wait_until(lambda: missing in details(app), "the loss is named")

        assert missing in check_problem(await client.get("/healthz"), 503)["detail"]
        assert missing in [check["detail"] for check in await find(client, "/doctor") if not check["ok"]]
        metrics = (await client.get("/metrics")).text
        assert 'records_lost{agent="decide-orders",topic="order-commands"} 2.0' in metrics
        assert 'records_lost{agent="decide-payments",topic="payment-commands"} 0.0' in metrics
        gone = check_problem(await client.get("/orders/o-1", params={"after": tokens[0]}), 410)
        assert missing in gone["detail"]

        placed = await client.post("/orders?wait=100ms", json=order(order_id="o-1"))  # it is kept, and handled later
        assert placed.status_code == 202, placed.text
        after = {"after": placed.json()["token"], "timeout": "30s"}
        assert missing in check_problem(await client.get("/orders/o-1", params=after), 504)["detail"]  # at once

        refused = await command_line(app, tmp_path, "accept-loss", "order-commands", str(1 - number), "--reason", "why")
        assert refused.returncode == 1
        assert "no loss to accept" in refused.stderr
        done = await command_line(
            app, tmp_path, "accept-loss", "order-commands", str(number), "--reason", "why", "--by", "ann"
        )
        assert done.stdout == f"decide-orders goes on at offset 2 of order-commands/{number}\n", done.stderr
        assert (await find(client, "/orders/o-1", **after))["order_id"] == "o-1"
        assert (
            "accepted by ann"
            in check_problem(await client.get("/orders/o-1", params={"after": tokens[0]}), 410)["detail"]
        )
        assert (await client.get("/healthz")).status_code == 200
        (item,) = (await find(client, f"/tables/{ACCEPTED_LOSSES.name}"))["items"]
        assert (item["row"]["by"], item["row"]["reason"], item["row"]["loss"]["end"]) == ("ann", "why", 2)


async def test_a_repeated_request_whose_command_was_lost_is_told_so(settings: Settings) -> None:
    body, key = order("c-1", order_id="o-1"), {"Idempotency-Key": "k"}
    async with running(settings) as app, client_of(app) as client:
        number = app.engine.partition_for(b"o-1")
        task = app.engine.task(number)
        task.backlog.hold(ORDER_COMMANDS.name)
        task.backlog.hold(ORDER_COMMANDS.name)  # nothing more is taken
        assert (await client.post("/orders", json=body, headers=key)).status_code == 202
        await remove_before(app.engine.broker, ORDER_COMMANDS.name, number, 1)
        task.backlog.let_go(ORDER_COMMANDS.name, 2)
        await wait_until(lambda: details(app), "the loss is named")
        assert (await client.post("/orders?wait=100ms", json=body, headers=key)).status_code == 202
        await accept_losses(app.engine, ORDER_COMMANDS.name, number, "ann", "a test")
        gone = check_problem(await client.post("/orders?wait=10s", json=body, headers=key), 410)
        assert "1 record, offset 0, was removed before decide-orders had read it; accepted by ann" in gone["detail"]
        assert "another Idempotency-Key" in gone["detail"]
        other = await client.post("/orders?wait=10s", json=body, headers={"Idempotency-Key": "another"})
        assert other.status_code == 201, other.text


@pytest.mark.kafka
@pytest.mark.parametrize(("topic", "status"), [(ORDER_COMMANDS, 202), (ORDER_REQUESTS, 503)])
async def test_a_command_behind_a_position_in_a_topic_that_was_made_anew_since_is_not_called_a_dead_letter(
    private_kafka_broker: KafkaBroker, tmp_path: Path, topic: Topic, status: int
) -> None:
    settings = make_settings(f"kafka://{private_kafka_broker.bootstrap}", tmp_path)
    body = order("c-1", order_id="o-1")
    async with running(settings) as app, client_of(app) as client:
        placed = await client.post("/orders?wait=10s", json=body, headers={"Idempotency-Key": "k"})
        assert placed.status_code == 201, placed.text
        assert details(app) == []
        async with admin_of(bootstrap_servers=private_kafka_broker.bootstrap) as admin:
            await make_anew(admin, topic.name, await settings_of(admin, topic.name))
        # The first record of the new topic is at an offset that was passed in the old one. A producer that has written
        # to the old one may be refused once, with 503.
        beside = next(key for key in map(str, range(100)) if is_beside(app, key))
        for _ in range(2):
            if topic is ORDER_COMMANDS:
                answer = await client.post("/orders/o-1/confirm?wait=100ms", json={})
            else:
                answer = await client.post("/orders", json=body, headers={"Idempotency-Key": beside})
            assert answer.status_code == status, answer.text
        await wait_until(lambda: "made anew" in " ".join(details(app)), "the new topic is noticed")


def is_beside(app: EngineApp, key: str) -> bool:
    """Whether a request of this key is in the partition of that of `k`."""
    beside, found = (app.engine.partition_for(request_key("c-1", name).encode()) for name in ("k", key))
    return beside == found


async def test_a_token_that_lies_beyond_the_end_is_told_so(settings: Settings) -> None:
    async with running(settings) as app, client_of(app) as client:
        token = encode_token([Position(ORDER_COMMANDS.name, app.engine.partition_for(b"o-1"), 99)])
        answer = await client.get("/orders/o-1", params={"after": token, "timeout": "50ms"})
        problem = check_problem(answer, 504)
        assert "offset 99 of order-commands" in problem["detail"]
        assert "beyond its end" in problem["detail"]
        assert problem["lag_records"] == 100


async def test_a_token_of_a_topic_that_was_made_anew_is_never_answered_as_reached(durable_settings: Settings) -> None:
    settings = durable_settings

    async def next_token(client: httpx.AsyncClient) -> str:
        return str((await client.post("/orders", json=order(order_id="o-1"))).json()["token"])

    async with running(settings) as app, client_of(app) as client:
        number = app.engine.partition_for(b"o-1")
        await wait_until(lambda: app.engine.source_watch.topic_ids, "the ids of topics are known")
        await app.engine.revoked()  # its record is never read
        old = await next_token(client)
        unmarked = encode_token(decode_token(old).positions)
    async with connected(settings) as broker:
        await delete_topic(broker, ORDER_COMMANDS.name)
        await until_gone(broker, ORDER_COMMANDS.name)

    async with running(settings) as app, client_of(app) as client:
        await wait_until(lambda: details(app), "the loss is named")
        new = await next_token(client)
        for token in (old, new):  # the agent stands still before the new topic
            problem = check_problem(await client.get("/orders/o-1", params={"after": token, "timeout": "50ms"}), 504)
            assert "the topic was deleted and made anew" in problem["detail"]
        for partition in range(settings.partitions):
            await client.post(
                f"/topics/{ORDER_COMMANDS.name}/partitions/{partition}/accept-loss", json={"reason": "why"}
            )
        await find(client, "/orders/o-1", after=new, timeout="30s")
        await wait_until(lambda: details(app) == [], "the agent goes on")
        gone = check_problem(await client.get("/orders/o-1", params={"after": old, "timeout": "50ms"}), 410)
        assert f"offset 0 of order-commands, partition {number}, as it was before it was deleted" in gone["detail"]
        # What a release wrote that knew no marks is compared by its offset alone.
        await find(client, "/orders/o-1", after=unmarked, timeout="30s")


@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("order-commands/partitions/0", {"reason": "why"}, 409),
        ("order-commands/partitions/0", {}, 422),
        ("order-commands/partitions/0", {"reason": ""}, 422),
        ("order-commands/partitions/99", {"reason": "why"}, 404),
        ("order-commands/partitions/x", {"reason": "why"}, 422),
        ("no-topic/partitions/0", {"reason": "why"}, 404),
    ],
)
async def test_a_loss_that_is_none_cannot_be_accepted(
    tmp_path: Path, path: str, body: dict[str, str], status: int
) -> None:
    async with running(make_settings("memory://", tmp_path)) as app, client_of(app) as client:
        check_problem(await client.post(f"/topics/{path}/accept-loss", json=body), status)


@pytest.mark.kafka
async def test_a_loss_can_be_accepted_at_any_worker(private_kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    two = Two()
    services = [two.service, *(module.service for module in (loss_commands, health, table_views, topic_views))]
    async with three_workers(private_kafka_broker, tmp_path, services) as (apps, clients):
        number = apps[0].engine.partition_for(KEY.encode())
        (owner,) = [app for app in apps if number in app.engine.numbers]
        task = owner.engine.task(number)
        task.backlog.hold(two.topic.name)
        task.backlog.hold(two.topic.name)
        for value in numbers(0, 6):
            await owner.engine.broker.publish(two.topic.name, number, [(KEY.encode(), value, ())])
        await remove_before(owner.engine.broker, two.topic.name, number, 5)
        task.backlog.let_go(two.topic.name, 2)
        await wait_until(lambda: details(owner), "the loss is named")
        await wait_until(lambda: not task.losses._looking, "the look is over")
        read = task.losses.all()[0].first
        (other, *_) = [client for app, client in zip(apps, clients, strict=True) if app is not owner]
        answer = await other.post(f"/topics/{two.topic.name}/partitions/{number}/accept-loss", json={"reason": "why"})
        assert answer.status_code == 200, answer.text
        assert [item["loss"]["agent"] for item in answer.json()["items"]] == [READER]
        await wait_until(lambda: two.got[READER] == [*texts(0, read), "5"], "the reader goes on")
        assert [details(app) for app in apps] == [[], [], []]
