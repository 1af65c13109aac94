"""The inventory service in a running application: lines over partitions, answers to sagas, shipping, HTTP."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from domain.inventory import ON_HAND_MAX, StockCommand
from engine.declare.envelope import Envelope, Metadata, new_envelope
from engine.declare.registry import EventRegistry
from engine.declare.topic import Topic
from engine.faust.app import EngineApp
from engine.log.ports import Record
from streams.events.inventory import INVENTORY_TYPES, AddStock, ReleaseStock, ReserveStock, ShipStock
from streams.settings import Settings
from streams.topics import INTEGRATION_EVENTS, INVENTORY_COMMANDS, INVENTORY_EVENTS, SAGA_REPLIES
from tests.apps import (
    DURABLE_TRANSPORTS,
    TRANSPORTS,
    broker_url,
    caught_up,
    dead_letters,
    make_settings,
    publish,
    read_topic,
    running,
    unique,
)
from tests.integration.test_web_routing import three_workers
from tests.integration.web import check_problem, client_of, find, go_on, hold_up
from tests.kafka import KafkaBroker

REGISTRY = EventRegistry(INVENTORY_TYPES)


@pytest.fixture(params=TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


@pytest_asyncio.fixture
async def app(settings: Settings) -> AsyncIterator[EngineApp]:
    """Run the whole application."""
    async with running(settings) as app:
        yield app


def products_everywhere(app: EngineApp) -> list[str]:
    """Return new products, one in each partition."""
    found: dict[int, str] = {}
    while len(found) < app.engine.settings.partitions:
        product_id = unique("p")
        found.setdefault(app.engine.partition_for(product_id.encode()), product_id)
    return list(found.values())


def neighbours(app: EngineApp) -> tuple[str, str]:
    """Return two new products in one partition."""
    first = other = unique("p")
    while other == first or app.engine.partition_for(other.encode()) != app.engine.partition_for(first.encode()):
        other = unique("p")
    return first, other


async def ask(app: EngineApp, *commands: StockCommand, ids: Sequence[str] = ()) -> None:
    """Publish commands, each under a new id unless ids are given, and wait until they are handled."""
    await send(app, *commands, ids=ids)
    await caught_up(app, "decide-stock")


async def send(app: EngineApp, *commands: StockCommand, ids: Sequence[str] = ()) -> None:
    """Publish commands, each under a new id unless ids are given."""
    for number, payload in enumerate(commands):
        command = new_envelope(
            payload,
            event_id=ids[number] if ids else str(uuid.uuid4()),
            aggregate_id=payload.product_id,
            timestamp=datetime(2026, 11, 23, 10, tzinfo=UTC),
            metadata=Metadata("request-1"),
        )
        await publish(app, INVENTORY_COMMANDS, payload.product_id, REGISTRY.encode(command))


async def records_of(app: EngineApp, topic: Topic, *keys: str) -> list[Record]:
    """Return the records of these keys, each key's in order: on a shared broker there are others."""
    return [record for record in await read_topic(app, topic) if (record.key or b"").decode() in keys]


def decode(record: Record) -> Envelope[Any]:
    return REGISTRY.decode(record.value or b"")


def told(records: Sequence[Record]) -> Counter[tuple[str, str, int]]:
    """Count what was said of which line of which product."""
    events = [decode(record) for record in records]
    return Counter((event.event_type, event.aggregate_id, event.payload.line) for event in events)


async def stock_of(client: httpx.AsyncClient, product_id: str, **query: str) -> tuple[int, int, int]:
    """Return on hand, reserved and available."""
    found = await find(client, f"/inventory/{product_id}", timeout="30s", **query)
    return found["on_hand"], found["reserved"], found["available"]


# ---- orders


async def test_lines_in_every_partition_are_decided_once_and_answered_where_their_order_is(app: EngineApp) -> None:
    products, order_id = products_everywhere(app), unique("o")
    reserves = [ReserveStock(product_id, order_id, 2, line) for line, product_id in enumerate(products, start=1)]
    ids = [str(uuid.uuid4()) for _ in reserves]
    scarce = ReserveStock(products[0], order_id, 9, len(products) + 1)
    await ask(app, *(AddStock(product_id, 10) for product_id in products))
    await ask(app, *reserves, ids=ids)
    await ask(app, *reserves, ids=ids)  # delivered again
    await ask(app, *(msgspec.structs.replace(reserve, quantity=5) for reserve in reserves))  # asked again
    await ask(app, scarce)

    events = [record for record in await records_of(app, INVENTORY_EVENTS, *products) if b'"line"' in record.value]  # type: ignore[operator]
    replies = await records_of(app, SAGA_REPLIES, order_id)
    reserved = {("inventory.reserved", reserve.product_id, reserve.line): 1 for reserve in reserves}
    failed = {("inventory.reservation_failed", scarce.product_id, scarce.line): 1}
    assert told(events) == reserved | failed
    assert told(replies) == dict.fromkeys(reserved, 3) | failed
    assert {app.engine.partition_for(record.key or b"") for record in events} == set(range(len(products)))

    published = {record.value for record in events}
    news = [decode(record) for record in replies if record.value in published]
    again = [decode(record) for record in replies if record.value not in published]
    assert len(news) == len(published) == len(products) + 1
    assert all(isinstance(event.aggregate_version, int) for event in news)
    assert {(event.aggregate_version, event.payload.quantity) for event in again} == {(msgspec.UNSET, 2)}
    assert len({event.event_id for event in (*news, *again)}) == len(replies)
    assert {event.metadata.correlation_id for event in (*news, *again)} == {"request-1"}

    contracts = [
        msgspec.json.decode(record.value or b"") for record in await records_of(app, INTEGRATION_EVENTS, *products)
    ]
    assert Counter(contract["event_type"] for contract in contracts) == {
        "inventory.reserved": len(products),
        "inventory.reservation_failed": 1,
    }


async def test_a_line_that_is_given_back_can_be_had_by_another_order(app: EngineApp) -> None:
    product_id, first, second, third = unique("p"), unique("o"), unique("o"), unique("o")
    async with client_of(app) as client:
        await ask(app, AddStock(product_id, 3), ReserveStock(product_id, first, 3))
        assert await stock_of(client, product_id) == (3, 3, 0)
        await ask(app, ReserveStock(product_id, second, 1), ReleaseStock(product_id, first))
        assert await stock_of(client, product_id) == (3, 0, 3)
        await ask(app, ReserveStock(product_id, third, 2), ReserveStock(product_id, first, 1))
        assert await stock_of(client, product_id) == (3, 2, 1)
        await ask(app, ShipStock(product_id, third), ReleaseStock(product_id, third), ShipStock(product_id, second))
        assert await stock_of(client, product_id) == (1, 0, 1)
    answers = {
        order_id: [
            (event.event_type, getattr(event.payload, "reason", None))
            for event in map(decode, await records_of(app, SAGA_REPLIES, order_id))
        ]
        for order_id in (first, second, third)
    }
    assert answers == {
        first: [
            ("inventory.reserved", None),
            ("inventory.released", None),
            ("inventory.reservation_failed", "released_before"),
        ],
        second: [("inventory.reservation_failed", "out_of_stock"), ("inventory.rejected", "not_reserved")],
        third: [
            ("inventory.reserved", None),
            ("inventory.shipped", None),
            ("inventory.release_failed", "already_shipped"),
        ],
    }


async def test_shipping_an_order_takes_each_of_its_lines_off_the_shelf(app: EngineApp) -> None:
    products, order_id = products_everywhere(app), unique("o")
    lines = [*products, products[0]]  # one product twice
    price = {"amount": "1.50", "currency": "USD"}
    items = [{"product_id": product_id, "quantity": 2, "price": price} for product_id in lines]
    await ask(app, *(AddStock(product_id, 10) for product_id in products))
    async with client_of(app) as client:
        await client.post("/orders", json={"order_id": order_id, "customer_id": "c-1", "items": items})
        await client.post(f"/orders/{order_id}/confirm")
        await ask(app, *(ReserveStock(product_id, order_id, 2, line) for line, product_id in enumerate(lines, start=1)))
        assert await stock_of(client, products[0]) == (10, 4, 6)
        for _ in range(2):  # the second one is refused by the order
            answer = await client.post(f"/orders/{order_id}/ship")
        token = answer.json()["token"]
        assert await stock_of(client, products[0], after=token) == (6, 0, 6)
        for product_id in products[1:]:
            assert await stock_of(client, product_id, after=token) == (8, 0, 8)
    shipped = {("inventory.shipped", product_id, line): 1 for line, product_id in enumerate(lines, start=1)}
    replies = told(await records_of(app, SAGA_REPLIES, order_id))
    assert {said: times for said, times in replies.items() if said[0] != "inventory.reserved"} == shipped
    commands = [decode(record) for record in await records_of(app, INVENTORY_COMMANDS, *products)]
    asked = [command for command in commands if isinstance(command.payload, ShipStock)]
    assert len(asked) == len({command.event_id for command in asked}) == len(lines)


@pytest.mark.parametrize("settings", DURABLE_TRANSPORTS, indirect=True)
async def test_what_was_decided_outlives_a_restart(settings: Settings) -> None:
    product_id, order_id = unique("p"), unique("o")
    commands: list[StockCommand] = [
        AddStock(product_id, 5),
        ReserveStock(product_id, order_id, 2),
        ReserveStock(product_id, order_id, 4, 2),
    ]
    ids = [str(uuid.uuid4()) for _ in commands]
    for _ in range(2):
        async with running(settings) as app, client_of(app) as client:
            await ask(app, *commands, ids=ids)
            assert await stock_of(client, product_id) == (5, 2, 3)
            assert len(await records_of(app, INVENTORY_EVENTS, product_id)) == 3


async def test_a_command_that_cannot_be_read_is_a_dead_letter_and_the_next_one_goes_on(app: EngineApp) -> None:
    product_id = unique("p")
    command = new_envelope(
        AddStock(product_id, 5),
        event_id=unique("c"),
        aggregate_id=product_id,
        timestamp=datetime(2026, 11, 23, 10, tzinfo=UTC),
        metadata=Metadata(),
    )
    value = REGISTRY.encode(command).replace(b'"quantity":5', b'"quantity":1.5')
    await publish(app, INVENTORY_COMMANDS, product_id, value)
    await ask(app, AddStock(product_id, 7))
    (event,) = map(decode, await records_of(app, INVENTORY_EVENTS, product_id))
    assert event.payload.on_hand == 7
    (dead,) = [found for found in await dead_letters(app, INVENTORY_COMMANDS) if found.key == product_id.encode()]
    assert dead.value == value


# ---- HTTP


async def test_what_is_put_on_the_shelf_can_be_read_with_its_token(app: EngineApp) -> None:
    product_id = unique("p")
    async with client_of(app) as client:
        check_problem(await client.get(f"/inventory/{product_id}"), 404)
        answer = await client.put(f"/inventory/{product_id}", json={"quantity": 5})
        assert answer.status_code == 202
        accepted = answer.json()
        assert accepted == {"product_id": product_id, "status": "processing", "token": accepted["token"]}
        assert answer.headers["Location"] == f"/inventory/{product_id}"
        assert await find(client, f"/inventory/{product_id}", after=accepted["token"], timeout="30s") == {
            "product_id": product_id,
            "on_hand": 5,
            "reserved": 0,
            "available": 5,
            "version": 1,
        }
        token = (await client.put(f"/inventory/{product_id}", json={"quantity": 0})).json()["token"]
        assert await stock_of(client, product_id, after=token) == (0, 0, 0)


async def test_the_same_key_or_command_id_is_the_same_command(app: EngineApp) -> None:
    product_id, other = neighbours(app)
    async with client_of(app) as client:
        for quantity in (5, 7):
            answer = await client.put(
                f"/inventory/{product_id}", json={"quantity": quantity}, headers={"Idempotency-Key": "k"}
            )
        assert await stock_of(client, product_id, after=answer.json()["token"]) == (5, 0, 5)
        # The key belongs to the product.
        answer = await client.put(f"/inventory/{other}", json={"quantity": 7}, headers={"Idempotency-Key": "k"})
        assert await stock_of(client, other, after=answer.json()["token"]) == (7, 0, 7)

        command_id = unique("command")
        for quantity in (1, 2):
            body = {"quantity": quantity, "command_id": command_id, "occurred_at": "2011-01-01T00:00:00+01:00"}
            answer = await client.put(f"/inventory/{product_id}", json=body)
        assert await stock_of(client, product_id, after=answer.json()["token"]) == (1, 0, 1)
    events = [decode(record) for record in await records_of(app, INVENTORY_EVENTS, product_id)]
    assert [(event.event_type, event.aggregate_version) for event in events] == [
        ("inventory.stocked", 1),
        ("inventory.stocked", 2),
    ]
    assert events[1].metadata.causation_id == command_id
    assert events[1].timestamp == datetime(2010, 12, 31, 23, tzinfo=UTC)


async def test_less_than_is_reserved_is_refused_and_changes_nothing(app: EngineApp) -> None:
    product_id = unique("p")
    await ask(app, AddStock(product_id, 5), ReserveStock(product_id, unique("o"), 3))
    async with client_of(app) as client:
        token = (await client.put(f"/inventory/{product_id}", json={"quantity": 2})).json()["token"]
        assert await stock_of(client, product_id, after=token) == (5, 3, 2)
        token = (await client.put(f"/inventory/{product_id}", json={"quantity": 3})).json()["token"]
        assert await stock_of(client, product_id, after=token) == (3, 3, 0)
    refused = decode((await records_of(app, INVENTORY_EVENTS, product_id))[2])
    assert (refused.event_type, refused.payload.reason) == ("inventory.rejected", "below_reserved")


async def test_a_stocktake_that_is_waited_for_is_answered_with_the_stock_or_with_why_it_was_refused(
    app: EngineApp,
) -> None:
    product_id, order_id = unique("p"), unique("o")
    await ask(app, AddStock(product_id, 5), ReserveStock(product_id, order_id, 3))
    async with client_of(app) as client:

        async def stocktake(quantity: int, key: str, product_id: str = product_id) -> httpx.Response:
            headers = {"Idempotency-Key": key}
            body = {"quantity": quantity}
            return await client.put(f"/inventory/{product_id}?wait=30s", json=body, headers=headers)

        for _ in range(2):  # a repeated command is the same command, and answered alike
            problem = check_problem(await stocktake(2, "too few"), 409)
            assert (problem["reason"], problem["product_id"]) == ("below_reserved", product_id)
            assert problem["detail"] == "3 pieces are reserved; release them first"
        done = await stocktake(3, "enough")
        assert (done.status_code, done.headers["Location"]) == (200, f"/inventory/{product_id}")
        assert done.json() == {"product_id": product_id, "on_hand": 3, "reserved": 3, "available": 0, "version": 4}
        # A command that was refused stays refused, whatever is possible by now.
        await ask(app, ReleaseStock(product_id, order_id, 1))
        check_problem(await stocktake(2, "too few"), 409)


async def test_a_command_id_that_another_product_has_used_is_refused(app: EngineApp) -> None:
    product_id, other = neighbours(app)
    body = {"quantity": 5, "command_id": unique("command")}
    async with client_of(app) as client:
        assert (await client.put(f"/inventory/{product_id}?wait=30s", json=body)).status_code == 200
        problem = check_problem(await client.put(f"/inventory/{other}?wait=30s", json=body), 409)
        assert (problem["reason"], problem["product_id"]) == ("already_used", other)


async def test_a_stocktake_that_takes_longer_than_it_is_waited_for_is_on_its_way(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path)) as app, client_of(app) as client:
        await hold_up(app)
        early = await client.put("/inventory/p?wait=50ms", json={"quantity": 1})
        assert (early.status_code, early.json()["status"]) == (202, "processing")
        await go_on(app)
        assert await stock_of(client, "p", after=early.json()["token"]) == (1, 0, 1)


async def test_a_product_of_which_only_commands_were_refused_is_unknown(app: EngineApp) -> None:
    product_id = unique("p")
    await ask(app, AddStock(product_id, 0), ReserveStock(product_id, unique("o"), 1))
    async with client_of(app) as client:
        check_problem(await client.get(f"/inventory/{product_id}"), 404)


@pytest.mark.parametrize("settings", ["memory"], indirect=True)
@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ("", ["quantity"]),
        ("{}", ["quantity"]),
        ('{"quantity": -1}', ["quantity"]),
        ('{"quantity": 1.5}', ["quantity"]),
        ('{"quantity": 2.0}', ["quantity"]),
        ('{"quantity": "5"}', ["quantity"]),
        ('{"quantity": true}', ["quantity"]),
        ('{"quantity": null}', ["quantity"]),
        (f'{{"quantity": {ON_HAND_MAX + 1}}}', ["quantity"]),
        (f'{{"quantity": {10**30}}}', ["quantity"]),
        ('{"quantity": 1, "command_id": "", "occurred_at": "now"}', ["occurred_at", "command_id"]),
        ("[]", ["body"]),
        ("{", ["body"]),
    ],
)
async def test_a_quantity_that_is_no_whole_number_from_0_on_is_refused(
    app: EngineApp, body: str, fields: list[str]
) -> None:
    async with client_of(app) as client:
        problem = check_problem(await client.put("/inventory/p", content=body), 422)
        assert [error["field"] for error in problem["errors"]] == fields
        check_problem(await client.put(f"/inventory/{'x' * 129}", json={"quantity": 1}), 422)
        check_problem(await client.put("/inventory/p", json={"quantity": 1}, headers={"Idempotency-Key": ""}), 422)
        check_problem(await client.get("/inventory/p?after=x"), 422)
        check_problem(await client.post("/inventory/p", json={"quantity": 1}), 405)
        assert await read_topic(app, INVENTORY_COMMANDS) == []


async def test_each_line_of_a_batch_is_a_product_or_a_problem_of_its_own(app: EngineApp) -> None:
    products = [unique("p") for _ in range(9)]
    lines = [json.dumps({"product_id": product_id, "quantity": n}) for n, product_id in enumerate(products)]
    lines[3:3] = ["", "{", json.dumps({"quantity": 1}), json.dumps({"product_id": "x" * 129, "quantity": -1})]
    async with client_of(app) as client:
        answer = await client.post("/inventory/batch", content="\r\n".join(lines))
        assert answer.status_code == 202
        batch = answer.json()
        assert (batch["accepted"], batch["rejected"]) == (9, 3)
        assert [
            (problem["line"], problem["status"], sorted(error["field"] for error in problem["errors"]))
            for problem in batch["problems"]
        ] == [(5, 422, ["body"]), (6, 422, ["product_id"]), (7, 422, ["product_id", "quantity"])]
        for n, product_id in enumerate(products):
            assert await stock_of(client, product_id, after=batch["token"]) == (n, 0, n)


async def test_a_line_of_a_batch_takes_effect_once_under_its_key_or_command_id(app: EngineApp) -> None:
    product_id, other = neighbours(app)
    async with client_of(app) as client:
        for quantity in (5, 7):
            lines = [{"product_id": product_id, "quantity": quantity}, {"product_id": product_id, "quantity": 1}]
            answer = await client.post(
                "/inventory/batch", content="\n".join(map(json.dumps, lines)), headers={"Idempotency-Key": "k"}
            )
        command_id = unique("command")
        for quantity in (2, 3):
            line = {
                "product_id": other,
                "quantity": quantity,
                "command_id": command_id,
                "occurred_at": "2010-12-01T08:00:00Z",
            }
            answer = await client.post("/inventory/batch", content=json.dumps(line))
        assert await stock_of(client, other, after=answer.json()["token"]) == (2, 0, 2)
    events = [decode(record) for record in await records_of(app, INVENTORY_EVENTS, product_id)]
    assert [event.payload.on_hand for event in events] == [5, 1]  # two lines with one product are two commands
    (event,) = map(decode, await records_of(app, INVENTORY_EVENTS, other))
    assert (event.timestamp, event.metadata.causation_id) == (datetime(2010, 12, 1, 8, tzinfo=UTC), command_id)


async def test_a_product_may_be_called_batch(app: EngineApp) -> None:
    async with client_of(app) as client:
        token = (await client.put("/inventory/batch", json={"quantity": 5})).json()["token"]
        assert await stock_of(client, "batch", after=token) == (5, 0, 5)


async def test_changing_stock_needs_the_token_where_one_is_set(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path, api_token="secret")
    async with running(settings) as app, client_of(app) as client:
        check_problem(await client.put("/inventory/p", json={"quantity": 1}), 401)
        check_problem(await client.post("/inventory/batch", content='{"product_id": "p", "quantity": 1}'), 401)
        bearer = {"Authorization": "Bearer secret"}
        token = (await client.put("/inventory/p", json={"quantity": 1}, headers=bearer)).json()["token"]
        assert await stock_of(client, "p", after=token) == (1, 0, 1)


async def test_any_worker_takes_and_tells_any_products_stock(private_kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    async with three_workers(private_kafka_broker, tmp_path) as (apps, clients):
        for number in range(12):
            product_id, writer, reader = f"p-{number}", clients[number % 3], clients[(number + 1) % 3]
            answer = await writer.put(f"/inventory/{product_id}", json={"quantity": number})
            assert await stock_of(reader, product_id, after=answer.json()["token"]) == (number, 0, number)
            waited = await writer.put(f"/inventory/{product_id}?wait=30s", json={"quantity": number})
            assert (waited.status_code, waited.json()["on_hand"]) == (200, number)
            assert waited.headers["Location"] == f"/inventory/{product_id}"
        await send(apps[0], AddStock("p-few", 5), ReserveStock("p-few", "o", 3))
        for client in clients:
            problem = check_problem(await client.put("/inventory/p-few?wait=30s", json={"quantity": 2}), 409)
            assert problem["reason"] == "below_reserved"
        for client in clients:
            assert [await stock_of(client, f"p-{number}") for number in range(12)] == [(n, 0, n) for n in range(12)]
            check_problem(await client.get("/inventory/nothing"), 404)
