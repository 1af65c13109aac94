"""Reconciliation over real HTTP: what orders, stock, payments and analytics say of the same pieces and money."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from engine.declare.envelope import Metadata, encode_envelope, new_envelope
from engine.declare.topic import Topic
from engine.faust.app import EngineApp
from streams.events.inventory import ReserveStock
from streams.events.money import Money
from streams.events.payment_answers import Declined
from streams.events.payments import ChargePayment
from streams.payment_gateway.simulator import SimulatedGateway
from streams.settings import Settings
from streams.topics import INVENTORY_COMMANDS, PAYMENT_COMMANDS
from tests.apps import DEADLINE_S, TRANSPORTS, caught_up, make_settings, publish, running
from tests.integration.test_web_routing import three_workers
from tests.integration.web import all_of, check_problem, client_of, find, go_on, hold_up, order, own_broker_url, place
from tests.kafka import KafkaBroker

PATH = "/analytics/reconciliation"
DECLINED_SHARE = 0.3


@pytest.fixture(params=["memory"])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(
        own_broker_url(request), tmp_path, saga="orchestration", payment_decline=DECLINED_SHARE, price_decimals=3
    )


@pytest_asyncio.fixture
async def app(settings: Settings) -> AsyncIterator[EngineApp]:
    """Run the whole application."""
    async with running(settings) as app:
        yield app


def basket(order_id: str, quantity: int, price: str, currency: str = "GBP", product: str = "A") -> dict[str, Any]:
    item = {"product_id": product, "quantity": quantity, "price": {"amount": price, "currency": currency}}
    return order("c-1", order_id, items=[item])


async def order_ids(settings: Settings, declined: bool, count: int) -> list[str]:
    """Ids of orders whose payment the simulated gateway declines, or does not."""
    gateway, found, number = SimulatedGateway(settings), list[str](), 0
    while len(found) < count:
        number += 1
        charge = await gateway.charge(f"o-{number}", "c-1", Money(Decimal(1), "GBP"), "")
        if isinstance(charge, Declined) is declined:
            found.append(f"o-{number}")
    return found


async def settled(client: httpx.AsyncClient, **query: str) -> Any:
    """The answer once no saga is under way: each waits until what is in the log now is counted."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = await find(client, PATH, timeout="30s", **query)
        if found["is_settled"]:
            return found
        assert time.monotonic() < deadline, found["sagas"]


def failing(found: Mapping[str, Any]) -> list[tuple[str, str | None, str]]:
    return [(check["check"], check["currency"], check["difference"]) for check in found["checks"] if not check["holds"]]


async def ask(app: EngineApp, topic: Topic, payload: ReserveStock | ChargePayment) -> None:
    """Publish a command that no order has asked for, as any program can."""
    key = payload.product_id if isinstance(payload, ReserveStock) else payload.order_id
    command = new_envelope(
        payload, event_id="c-1", aggregate_id=key, timestamp=datetime(2026, 11, 23, tzinfo=UTC), metadata=Metadata()
    )
    await publish(app, topic, key, encode_envelope(command))


@pytest.mark.parametrize("settings", TRANSPORTS, indirect=True)
async def test_confirmed_declined_cancelled_and_shipped_orders_add_up(settings: Settings, app: EngineApp) -> None:
    paid, (declined,) = await order_ids(settings, False, 5), await order_ids(settings, True, 1)
    async with client_of(app) as client:
        await client.put("/inventory/A", json={"quantity": 20})
        for body in (
            basket(paid[0], 2, "1.50"),
            basket(paid[1], 3, "0.333", "EUR"),
            basket(paid[2], 1, "10.00"),
            basket(declined, 4, "5.00"),
            basket(paid[3], 2, "7.00"),
            basket(paid[4], 1, "99.00", product="never stocked"),
        ):
            token = await place(client, body)
            await find(client, f"/sagas/{body['order_id']}", after=token, timeout="30s")  # it has begun
        assert (await settled(client))["sagas"] == {
            "running": 0,
            "completed": 4,
            "compensating": 0,
            "compensated": 2,
            "compensation_failed": 0,
        }
        await client.post(f"/orders/{paid[2]}/cancel")
        token = (await client.post(f"/orders/{paid[3]}/ship")).json()["token"]
        found = await settled(client, after=token)
    assert found["adds_up"], found["checks"]
    assert found["stock"] == {"stocked": 20, "shipped": 2, "on_hand": 18, "reserved": 5}
    assert found["payments"] == [
        {"currency": "EUR", "charged": "0.999", "refunded": "0", "held": "0.999"},
        {"currency": "GBP", "charged": "27.00", "refunded": "10.00", "held": "17.00"},
    ]
    assert found["orders"] == [
        {
            "currency": "EUR", "placed_count": 1, "confirmed_count": 1, "cancelled_count": 0,
            "placed": "0.999", "confirmed": "0.999", "cancelled": "0", "held_pieces": 3, "shipped_pieces": 0,
        },
        {
            "currency": "GBP", "placed_count": 5, "confirmed_count": 2, "cancelled_count": 3,
            "placed": "146.00", "confirmed": "17.00", "cancelled": "129.00", "held_pieces": 2, "shipped_pieces": 2,
        },
    ]  # fmt: skip
    assert found["analytics"] == [{"currency": "EUR", "revenue": "0.999"}, {"currency": "GBP", "revenue": "17.00"}]
    assert found["sagas"]["completed"] == 3
    assert [check["check"] for check in found["checks"] if check["currency"] is None] == [
        "stocked = on hand + shipped",
        "reserved = pieces of confirmed orders",
        "shipped = pieces of shipped orders",
    ]


async def test_choreographed_orders_add_up_too(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path, saga="choreography", payment_decline=DECLINED_SHARE)
    (paid, cancelled), (declined,) = await order_ids(settings, False, 2), await order_ids(settings, True, 1)
    async with running(settings) as app, client_of(app) as client:
        await client.put("/inventory/A", json={"quantity": 20})
        for order_id, quantity in ((paid, 2), (cancelled, 3), (declined, 4)):
            await place(client, basket(order_id, quantity, "1.00"))
        await settled(client)
        token = (await client.post(f"/orders/{cancelled}/cancel")).json()["token"]
        found = await settled(client, after=token)
    assert found["adds_up"], found["checks"]
    assert (found["stock"]["reserved"], found["payments"][0]["held"], found["sagas"]["compensated"]) == (2, "2.00", 2)


async def test_orders_without_a_saga_are_not_expected_to_be_paid_for(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path)) as app, client_of(app) as client:
        await place(client, basket("o-1", 2, "1.50"))
        token = (await client.post("/orders/o-1/confirm")).json()["token"]
        found = await settled(client, after=token)
    assert found["adds_up"]
    assert (found["orders"][0]["confirmed"], found["orders"][0]["held_pieces"]) == ("3.00", 0)


async def test_money_and_pieces_that_no_order_has_asked_for_are_found(app: EngineApp, settings: Settings) -> None:
    (paid,) = await order_ids(settings, False, 1)
    async with client_of(app) as client:
        await client.put("/inventory/A", json={"quantity": 3})
        await ask(app, INVENTORY_COMMANDS, ReserveStock("A", "nobody", 2))
        await ask(app, PAYMENT_COMMANDS, ChargePayment(paid, "c-1", Money(Decimal("0.01"), "GBP")))
        await caught_up(app, "decide-stock", "decide-payments")
        found = await settled(client)
    assert not found["adds_up"]
    assert failing(found) == [
        ("reserved = pieces of confirmed orders", None, "2"),
        ("charged - refunded = confirmed orders", "GBP", "0.01"),
    ]


async def test_it_is_never_older_than_the_token_of_stock_or_of_an_order(app: EngineApp) -> None:
    async with client_of(app) as client:
        for number in range(1, 21):
            body = {"quantity": number}
            token = (await client.put(f"/inventory/p-{number % 4}", json=body)).json()["token"]
            stocked = (await find(client, PATH, after=token, timeout="30s"))["stock"]
            newest = {n % 4: n for n in range(1, number + 1)}
            assert (stocked["stocked"], stocked["on_hand"]) == (sum(newest.values()), sum(newest.values()))
            token = await place(client, basket(f"new-{number}", 1, "1.00", "USD"))
            (orders,) = (await find(client, PATH, after=token, timeout="30s"))["orders"]
            assert orders["placed_count"] == number


async def test_sums_that_stay_behind_are_a_504(app: EngineApp) -> None:
    async with client_of(app) as client:
        await client.put("/inventory/A", json={"quantity": 3})
        await find(client, PATH, timeout="30s")
        number = app.engine.partition_for(b"o-1")
        await hold_up(app)
        await app.engine.broker.publish("payment-events", number, [(b"o-1", b"{}", ())])
        problem = check_problem(await client.get(PATH, params={"timeout": "50ms"}), 504)
        assert (problem["agent"], problem["partition"], problem["lag_records"]) == ("reconcile-payments", number, 1)
        await go_on(app)
        await find(client, PATH, timeout="30s")


async def test_any_worker_knows_the_sums_of_all(private_kafka_broker: KafkaBroker, tmp_path: Path) -> None:
    async with three_workers(private_kafka_broker, tmp_path) as (_, clients):
        lines = [json.dumps({"product_id": f"p-{number}", "quantity": number}) for number in range(1, 13)]
        answer = await clients[0].post("/inventory/batch", content="\n".join(lines))
        tokens = [await place(clients[n % 3], basket(f"o-{n}", 1, "0.10")) for n in range(12)]
        token = all_of(answer.json()["token"], *tokens)
        for client in clients:
            found = await find(client, PATH, after=token, timeout="30s")
            assert found["adds_up"]
            assert found["stock"] == {"stocked": 78, "shipped": 0, "on_hand": 78, "reserved": 0}
            assert (found["orders"][0]["placed_count"], found["orders"][0]["placed"]) == (12, "1.20")
