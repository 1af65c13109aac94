"""A service that is down stops only what needs it; on return everything completes, and nothing is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from pathlib import Path

import httpx
import pytest

from agents.inventory import service as inventory
from domain.sagas.state import Saga
from engine.faust.app import EngineApp
from streams.app import shop_services
from tables.payments import PAYMENTS
from tables.sagas import SAGAS
from tests.apps import KAFKA, caught_up, make_settings, row, running, stop, wait_until
from tests.apps import start as start_app
from tests.integration.web import client_of, own_broker_url
from tests.mail_server import MailServer
from tests.payment_server import PaymentServer, payment_server
from tests.unit.saga_world import STYLES

COUNT = 20
PRICE = Decimal("0.10")
ORDERS = [f"o-{number}" for number in range(COUNT)]


@pytest.fixture(params=["embedded", KAFKA])
def broker(request: pytest.FixtureRequest) -> str:
    return own_broker_url(request)


@pytest.fixture
async def gateway() -> AsyncIterator[PaymentServer]:
    async with payment_server() as server:
        yield server


async def stock(client: httpx.AsyncClient) -> None:
    """Put enough of one product on the shelf."""
    await client.put("/inventory/a", json={"quantity": 1000})


async def place_all(client: httpx.AsyncClient) -> str:
    """Place every order, each with a mail address; the last token."""
    token = ""
    for order_id in ORDERS:
        items = [{"product_id": "a", "quantity": 2, "price": {"amount": str(PRICE), "currency": "EUR"}}]
        body = {"order_id": order_id, "customer_id": "c-1", "items": items, "email": f"{order_id}@example.com"}
        token = (await client.post("/orders", json=body)).json()["token"]
    return token


def count(app: EngineApp, state: str) -> int:
    """How many of the orders have their saga in a state."""
    sagas: list[Saga | None] = [row(app, SAGAS, order_id) for order_id in ORDERS]
    return sum(saga is not None and saga.state == state for saga in sagas)


async def all_completed(app: EngineApp, client: httpx.AsyncClient) -> None:
    """Wait for the end; orders, payments and stock agree."""
    await wait_until(lambda: count(app, "completed") == COUNT, "every saga is completed")
    await caught_up(app)
    shelf = (await client.get("/inventory/a")).json()
    assert (shelf["on_hand"], shelf["reserved"]) == (1000, 2 * COUNT)
    payments = [row(app, PAYMENTS, order_id) for order_id in ORDERS]
    assert [payment.status for payment in payments if payment is not None] == ["received"] * COUNT
    (revenue,) = (await client.get("/analytics/summary")).json()["revenue"]
    assert Decimal(revenue["revenue"]) == 2 * PRICE * COUNT


@pytest.mark.parametrize("style", STYLES)
async def test_without_the_stock_agent_orders_are_taken_and_wait(broker: str, tmp_path: Path, style: str) -> None:
    settings = make_settings(broker, tmp_path, saga=style)
    others = [service for service in shop_services() if service is not inventory]
    app = await start_app(settings, others)
    async with client_of(app) as client:
        await stock(client)
        token = await place_all(client)
        assert (await client.get(f"/orders/{ORDERS[-1]}", params={"after": token})).json()["status"] == "pending"
        await caught_up(app)
        assert count(app, "running") == COUNT
    await stop(app)
    async with running(settings) as app, client_of(app) as client:
        await all_completed(app, client)


@pytest.mark.parametrize("style", STYLES)
async def test_without_the_payment_gateway_stock_is_reserved_and_orders_wait(
    tmp_path: Path, style: str, gateway: PaymentServer
) -> None:
    await gateway.stop()
    settings = make_settings("memory://", tmp_path, saga=style, payment_url=gateway.url)
    async with running(settings) as app, client_of(app) as client:
        await stock(client)
        await place_all(client)
        others = [name for name in app.engine.agents if name != "decide-payments"]
        await caught_up(app, *others)
        await wait_until(app.engine.pauses, "the calls of the gateway are paused")
        (paused,) = (await client.get("/readyz")).json()["paused"]
        assert paused["agent"] == "decide-payments"
        assert (await client.get("/inventory/a")).json()["reserved"] == 2 * COUNT
        assert count(app, "running") == COUNT
        token = (await client.post(f"/orders/{ORDERS[0]}/cancel")).json()["token"]
        answer = await client.get(f"/orders/{ORDERS[0]}", params={"after": token})
        assert answer.json()["status"] == "cancelled"
        await gateway.start()
        await wait_until(lambda: count(app, "completed") == COUNT - 1, "all others are completed")
        await wait_until(lambda: count(app, "compensated") == 1, "the cancelled one is undone")
        await caught_up(app)
        assert (await client.get("/inventory/a")).json()["reserved"] == 2 * (COUNT - 1)
        assert sum(gateway.money.values()) == 2 * PRICE * (COUNT - 1)


@pytest.mark.parametrize("style", STYLES)
async def test_without_the_mail_server_orders_are_confirmed_and_mail_comes_later(tmp_path: Path, style: str) -> None:
    server = MailServer()
    await server.start()
    await server.stop()
    settings = make_settings("memory://", tmp_path, saga=style, smtp_url=server.url)
    async with running(settings) as app, client_of(app) as client:
        await stock(client)
        await place_all(client)
        await wait_until(lambda: count(app, "completed") == COUNT, "every saga is completed")
        await server.start()
        try:
            await all_completed(app, client)
            subjects = [len(server.messages_to(f"{order_id}@example.com")) for order_id in ORDERS]
            assert subjects == [2] * COUNT  # placed and confirmed, once each
        finally:
            await server.stop()
