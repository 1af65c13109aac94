"""What the tests of the web view share: HTTP clients of applications in this process, bodies, and checks of answers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest

from engine.faust.app import EngineApp
from engine.positions.tokens import decode_token, encode_token

REQUEST_TIMEOUT_S = 40.0
WRITERS = 16  # httpx slows down with the square of its open requests


def own_broker_url(request: pytest.FixtureRequest) -> str:
    """Turn a fixture's parameter, one of TRANSPORTS, into ORDERS_BROKER, with a Kafka of the test's own.

    Applications of a shared Kafka would read each other's orders.
    """
    if request.param != "kafka":
        return f"{request.param}://"
    return f"kafka://{request.getfixturevalue('private_kafka_broker').bootstrap}"


@asynccontextmanager
async def client_of(app: EngineApp, **headers: str) -> AsyncIterator[httpx.AsyncClient]:
    """Give an HTTP client of one worker."""
    async with httpx.AsyncClient(
        base_url=app.engine.settings.public_url,
        timeout=REQUEST_TIMEOUT_S,
        headers=headers,
        trust_env=False,
    ) as client:
        yield client


def order(customer_id: str = "customer-1", order_id: str | None = None, **changes: Any) -> dict[str, Any]:
    """Return a body of POST /orders."""
    price = {"amount": "1.50", "currency": "USD"}
    body = {"customer_id": customer_id, "items": [{"product_id": "SKU-1", "quantity": 2, "price": price}], **changes}
    return body if order_id is None else {**body, "order_id": order_id}


def too_expensive(order_id: str) -> dict[str, Any]:
    """Return a body that can be read, but breaks a rule of the domain: its total has more than 28 digits."""
    price = {"amount": "9" * 28, "currency": "USD"}
    return order(order_id=order_id, items=[{"product_id": "SKU-1", "quantity": 10**9, "price": price}])


def check_problem(answer: httpx.Response, status: int) -> Mapping[str, Any]:
    """Check that an answer is a problem of RFC 9457 with this status, and return it."""
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    problem = answer.json()
    assert problem["status"] == status
    assert problem["title"]
    assert problem["detail"]
    assert "Traceback" not in answer.text
    return problem  # type: ignore[no-any-return]


def check_unavailable(answer: httpx.Response) -> Mapping[str, Any]:
    """Check that an answer says that the same request may succeed in a moment."""
    assert answer.headers.get("Retry-After") == "1", answer.text
    return check_problem(answer, 503)


async def place(client: httpx.AsyncClient, body: Mapping[str, Any], **headers: str) -> str:
    """Place an order and return its token."""
    answer = await client.post("/orders", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["token"])


def all_of(*tokens: str) -> str:
    """Return a token that stands for all of these."""
    return encode_token(position for token in tokens for position in decode_token(token).positions)


async def find(client: httpx.AsyncClient, path: str, **query: str | int) -> Any:
    """Return the JSON at a path that is there."""
    answer = await client.get(path, params=query)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def hold_up(app: EngineApp) -> None:
    """Let no agent take anything more, while reads go on, as during a rebalance."""
    await app.engine.revoked()


async def go_on(app: EngineApp) -> None:
    """End what `hold_up` began."""
    await app.engine.assigned(app.engine.numbers, app.consumer_generation_id + 1)
    app.consumer_generation_id += 1
    await asyncio.sleep(0)


async def writes(clients: Sequence[httpx.AsyncClient], choice: random.Random, orders: int) -> None:
    """Place and cancel orders from many sides at once, reading each view with each token: none may be older.

    `2 x orders` random writes, each followed by two reads, at clients chosen at random.
    """
    slots = asyncio.Semaphore(WRITERS)

    def anyone() -> httpx.AsyncClient:
        return choice.choice(clients)

    async def one(number: int) -> None:
        async with slots:
            await place_and_cancel(f"load-{number}", f"c-{choice.randrange(10)}")

    async def place_and_cancel(order_id: str, customer_id: str) -> None:
        token = await place(anyone(), order(customer_id, order_id))
        await check(order_id, customer_id, token, "pending")
        answer = await anyone().post(f"/orders/{order_id}/cancel")
        await check(order_id, customer_id, answer.json()["token"], "cancelled")

    async def check(order_id: str, customer_id: str, token: str, status: str) -> None:
        listed = await find(anyone(), f"/customers/{customer_id}/orders", after=token, timeout="30s", limit=1000)
        shown = {found["order_id"]: found["status"] for found in listed["items"]}
        assert shown.get(order_id) == status
        found = await find(anyone(), f"/orders/{order_id}", after=token, timeout="30s")
        assert found["status"] == status

    await asyncio.gather(*(one(number) for number in range(orders)))
