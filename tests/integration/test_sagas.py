"""Orders go through their sagas on the real transports: orders, stock, payments and views agree, in both styles."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from domain.orders import Order
from domain.sagas.state import Saga
from engine.declare import handlers
from engine.faust.app import EngineApp
from engine.web import bodies
from streams.settings import Settings
from tables.orders import ORDERS
from tables.sagas import SAGAS
from tests.apps import KAFKA, caught_up, crash, make_settings, row, running, start, wait_until
from tests.integration.web import client_of, own_broker_url
from tests.payment_server import PaymentServer, payment_server
from tests.unit.saga_world import STYLES

ORDER = "o-1"
LINES = {"a": 1, "b": 2, "c": 3, "d": 4}  # over all partitions
OTHER = {"orchestration": "choreography", "choreography": "orchestration"}


@pytest.fixture(params=["memory", "embedded", KAFKA])
def broker(request: pytest.FixtureRequest) -> str:
    return own_broker_url(request)


@pytest.fixture(params=["embedded", KAFKA])
def durable(request: pytest.FixtureRequest) -> str:
    return own_broker_url(request)


@pytest.fixture
async def gateway() -> AsyncIterator[PaymentServer]:
    async with payment_server() as server:
        yield server


def shop(broker: str, tmp_path: Path, style: str, gateway: PaymentServer, **changes: Any) -> Settings:
    """Settings of a whole application with sagas."""
    return make_settings(broker, tmp_path, saga=style, payment_url=gateway.url, **changes)


async def stock(client: httpx.AsyncClient, pieces: int = 10) -> None:
    """Put pieces of every product on the shelf, and wait until they are there."""
    for product in LINES:
        token = (await client.put(f"/inventory/{product}", json={"quantity": pieces})).json()["token"]
        answer = await client.get(f"/inventory/{product}", params={"after": token})
        assert answer.json()["available"] == pieces


async def place(client: httpx.AsyncClient, order_id: str = ORDER, **lines: int) -> None:
    """Place an order of now; by default with a line of every product."""
    await place_at(client, None, order_id, **lines)


async def place_at(client: httpx.AsyncClient, occurred_at: str | None, order_id: str, **lines: int) -> None:
    """Place an order of a business time."""
    items = [
        {"product_id": product, "quantity": quantity, "price": {"amount": "1.10", "currency": "EUR"}}
        for product, quantity in (lines or LINES).items()
    ]
    body = {"order_id": order_id, "customer_id": "c-1", "items": items, "occurred_at": occurred_at}
    answer = await client.post("/orders", json=body)
    assert answer.status_code == 202


async def ended(app: EngineApp, state: str, order_id: str = ORDER) -> None:
    """Wait until the saga of an order is in a state."""

    def is_there() -> bool:
        saga: Saga | None = row(app, SAGAS, order_id)
        return saga is not None and saga.state == state

    await wait_until(is_there, f"the saga of {order_id} is {state}")


async def story(client: httpx.AsyncClient) -> dict[str, Any]:
    """How order, saga, payment and stock stand, as the views show it."""
    order = (await client.get(f"/orders/{ORDER}")).json()
    payment = await client.get(f"/payments/{ORDER}")
    shelf = {product: (await client.get(f"/inventory/{product}")).json() for product in LINES}
    return {
        "order": (order["status"], order["cancel_reason"]),
        "saga": (await client.get(f"/sagas/{ORDER}")).json()["state"],
        "payment": payment.json()["status"] if payment.status_code == 200 else None,
        "reserved": {product: found["reserved"] for product, found in shelf.items() if found["reserved"]},
    }


CONFIRMED = {"order": ("confirmed", None), "saga": "completed", "payment": "received", "reserved": LINES}


def cancelled(reason: str, payment: str | None) -> dict[str, Any]:
    """An order that left nothing behind."""
    return {"order": ("cancelled", reason), "saga": "compensated", "payment": payment, "reserved": {}}


@pytest.mark.parametrize("style", STYLES)
async def test_an_order_is_confirmed_shipped_cancelled_or_undone_as_it_should(
    broker: str, tmp_path: Path, style: str, gateway: PaymentServer
) -> None:
    gateway.declined.add("declined")
    async with running(shop(broker, tmp_path, style, gateway)) as app, client_of(app) as client:
        await stock(client)
        await place(client)
        await ended(app, "completed")
        assert await story(client) == CONFIRMED
        for order_id, lines in (("declined", {"a": 1, "b": 1}), ("short", {"a": 1, "b": 100})):
            await place(client, order_id, **lines)
            await ended(app, "compensated", order_id)
        reasons = [(await client.get(f"/orders/{name}")).json()["cancel_reason"] for name in ("declined", "short")]
        assert reasons == ["card_declined", "out_of_stock"]
        assert await story(client) == CONFIRMED
        await place(client, "shipped", a=2)
        await ended(app, "completed", "shipped")
        token = (await client.post("/orders/shipped/ship")).json()["token"]
        assert (await client.get("/inventory/a", params={"after": token})).json()["on_hand"] == 8
        await client.post(f"/orders/{ORDER}/cancel", json={"reason": "changed my mind"})
        await ended(app, "compensated")
        assert await story(client) == cancelled("changed my mind", "refunded")
        assert {order_id: money for order_id, money in gateway.money.items() if money} == {"shipped": Decimal("2.20")}


@pytest.mark.parametrize("style", STYLES)
async def test_cancelling_while_the_money_is_asked_for_gives_everything_back(
    tmp_path: Path, style: str, gateway: PaymentServer
) -> None:
    async with running(shop("memory://", tmp_path, style, gateway)) as app, client_of(app) as client:
        await stock(client)
        gateway.hold()
        await place(client)
        await wait_until(lambda: gateway.open == 1, "the money is asked for")
        token = (await client.post(f"/orders/{ORDER}/cancel", json={"reason": "too slow"})).json()["token"]
        answer = await client.get(f"/orders/{ORDER}", params={"after": token})
        assert answer.json()["status"] == "cancelled"  # at once, while the gateway still thinks
        gateway.let_go.set()
        await ended(app, "compensated")
        await caught_up(app)
        assert await story(client) == cancelled("too slow", "refunded")
        assert gateway.money == {ORDER: 0}


@pytest.mark.parametrize("style", STYLES)
async def test_a_deadline_survives_a_restart_and_what_comes_late_is_refunded(
    durable: str, tmp_path: Path, style: str, gateway: PaymentServer
) -> None:
    settings = shop(durable, tmp_path, style, gateway, saga_step_timeout=1.0)
    app = await start(settings)
    async with client_of(app) as client:
        await stock(client)
        gateway.hold()
        await place(client)
        await wait_until(lambda: gateway.open == 1, "the money is asked for")
    await crash(app)
    async with running(settings) as app, client_of(app) as client:

        def is_cancelled() -> bool:
            order: Order | None = row(app, ORDERS, ORDER)
            return order is not None and order.status == "cancelled"

        await wait_until(is_cancelled, "the deadline has passed")
        gateway.let_go.set()
        await wait_until(lambda: "/refunds" in gateway.paths(ORDER), "the late money is given back")
        await ended(app, "compensated")
        await caught_up(app)
        assert await story(client) == cancelled("timed_out", "refunded")
        assert gateway.money == {ORDER: 0}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("declined", [False, True], ids=["paid", "declined"])
async def test_an_order_ends_in_the_style_it_began_in(
    tmp_path: Path, style: str, declined: bool, gateway: PaymentServer
) -> None:
    if declined:
        gateway.declined.add(ORDER)
    settings = shop("embedded://", tmp_path, style, gateway)
    app = await start(settings)
    async with client_of(app) as client:
        await stock(client)
        gateway.hold()
        await place(client)
        await wait_until(lambda: gateway.open == 1, "the money is asked for")
    await crash(app)
    gateway.let_go.set()
    changed = settings.model_copy(update={"saga": OTHER[style]})
    async with running(changed) as app, client_of(app) as client:
        await ended(app, "compensated" if declined else "completed")
        await caught_up(app)
        assert await story(client) == (cancelled("card_declined", "failed") if declined else CONFIRMED)
        assert (await client.get(f"/sagas/{ORDER}")).json()["style"] == style
        await place(client, "next", a=1)
        await ended(app, "completed", "next")
        assert (await client.get("/sagas/next")).json()["style"] == OTHER[style]


@pytest.mark.parametrize("style", STYLES)
async def test_an_order_of_the_year_9999_that_an_earlier_release_took_can_be_cancelled(
    durable: str, tmp_path: Path, style: str, gateway: PaymentServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(shop(durable, tmp_path, style, gateway)) as app, client_of(app) as client:
        await stock(client)
        with monkeypatch.context() as earlier_release:
            earlier_release.setattr(handlers, "LATEST", datetime.max.replace(tzinfo=UTC))
            earlier_release.setattr(bodies, "is_accepted", lambda time: True)
            await place_at(client, "9999-12-31T23:59:59Z", ORDER)
            await ended(app, "completed")
        token = (await client.post(f"/orders/{ORDER}/cancel", json={"reason": "too far"})).json()["token"]
        assert (await client.get(f"/orders/{ORDER}", params={"after": token})).json()["status"] == "cancelled"
        await ended(app, "compensated")
        assert await story(client) == cancelled("too far", "refunded")
        for path in (
            f"/orders/{ORDER}/story",
            f"/orders/{ORDER}/events",
            f"/sagas/{ORDER}",
            "/orders",
            "/analytics/daily",
        ):
            assert (await client.get(path)).status_code == 200, path
