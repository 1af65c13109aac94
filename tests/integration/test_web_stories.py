"""Stories over HTTP: every record of an order, with what caused it, and all orders of a request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest_asyncio

from engine.faust.app import EngineApp
from streams.payment_gateway.simulator import _share
from streams.topics import (
    INVENTORY_COMMANDS,
    INVENTORY_EVENTS,
    NOTIFICATION_COMMANDS,
    ORDER_COMMANDS,
    ORDER_EVENTS,
    PAYMENT_COMMANDS,
    PAYMENT_EVENTS,
)
from tables.notifications import NOTIFICATIONS, NotificationKey
from tests.apps import at_rest, make_settings, read_topic, running, wait_until
from tests.integration.web import check_problem, find, order

TOPICS = (
    ORDER_COMMANDS,
    ORDER_EVENTS,
    INVENTORY_COMMANDS,
    INVENTORY_EVENTS,
    PAYMENT_COMMANDS,
    PAYMENT_EVENTS,
    NOTIFICATION_COMMANDS,
)
PAID = next(order_id for order_id in map("o-{}".format, range(99)) if _share(order_id) >= 0.5)
UNPAID = next(order_id for order_id in map("o-{}".format, range(99)) if _share(order_id) < 0.5)
Fact = tuple[str, str, str, str | None]


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[EngineApp]:
    """Run the whole application with sagas; its gateway declines PAID's card never, and that of UNPAID always."""
    async with running(make_settings("memory://", tmp_path, saga="orchestration", payment_decline=0.5)) as app:
        yield app


async def recorded(app: EngineApp, order_id: str) -> set[Fact]:
    """Every record of an order in the topics: id, type, topic and cause."""
    facts: set[Fact] = set()
    for topic in TOPICS:
        for record in await read_topic(app, topic):
            message = json.loads(record.value or b"")
            if message["payload"].get("orderId") == order_id:
                cause = message["metadata"]["causationId"]
                facts.add((message["eventId"], message["eventType"], topic.name, cause))
    return facts


def every_node(nodes: list[Any]) -> Iterator[Any]:
    """All nodes of trees."""
    for node in nodes:
        yield node
        yield from every_node(node["children"])


def told(story: Any) -> set[Fact]:
    """What a story says."""
    return {(node["id"], node["type"], node["topic"], node["caused_by"]) for node in every_node(story["roots"])}


def lines(*products: str) -> list[Any]:
    """Lines of an order, one piece of each product."""
    return [
        {"product_id": product, "quantity": 1, "price": {"amount": "2.00", "currency": "EUR"}} for product in products
    ]


async def mailed(app: EngineApp, order_id: str, *kinds: str) -> None:
    """Wait until these mails of an order are settled, and nothing is under way."""
    number = app.engine.partition_for(order_id.encode())

    def all_settled() -> bool:
        task = app.engine.task(number)
        return all(task.read(NOTIFICATIONS, NotificationKey(order_id, kind)) is not None for kind in kinds)

    await wait_until(all_settled, f"the mails {kinds} are sent")
    await at_rest(app)


async def begin(client: httpx.AsyncClient, order_id: str, correlation: str) -> None:
    """Stock three products and place an order for them."""
    for product in ("SKU-1", "SKU-2", "SKU-3"):
        token = (await client.put(f"/inventory/{product}", json={"quantity": 10})).json()["token"]
        await find(client, f"/inventory/{product}", after=token)
    body = order("c-1", order_id, items=lines("SKU-1", "SKU-2", "SKU-3"), email="a@example.com")
    answer = await client.post("/orders", json=body, headers={"X-Correlation-Id": correlation})
    assert answer.status_code == 202, answer.text


def chain_to(nodes: list[Any], type_: str) -> list[str]:
    """The types from a root down to the first node of a type."""
    for node in nodes:
        if node["type"] == type_:
            return [type_]
        below = chain_to(node["children"], type_)
        if below:
            return [node["type"], *below]
    return []


async def test_the_story_of_a_confirmed_order_holds_every_record(app: EngineApp, client: httpx.AsyncClient) -> None:
    await begin(client, PAID, "request-1")
    await mailed(app, PAID, "order_placed", "order_confirmed")
    story = await find(client, f"/orders/{PAID}/story")
    assert (story["status"], story["customer_id"], story["correlation_id"]) == ("confirmed", "c-1", "request-1")
    assert told(story) == await recorded(app, PAID)
    (root,) = story["roots"]
    assert (root["kind"], root["type"]) == ("command", "order.place")
    mails = {node["detail"]: node for node in every_node(story["roots"]) if node["kind"] == "mail"}
    assert {kind: mail["state"] for kind, mail in mails.items()} == {"order_placed": "sent", "order_confirmed": "sent"}
    assert chain_to(story["roots"], "order.confirmed")[-3:] == ["payment.charge", "payment.received", "order.confirmed"]


async def test_the_story_of_a_cancelled_order_has_who_cancelled_it_and_what_was_undone(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    await begin(client, PAID, "request-1")
    await mailed(app, PAID, "order_placed", "order_confirmed")
    cancelled = await client.post(f"/orders/{PAID}/cancel", headers={"X-Correlation-Id": "request-2"})
    await mailed(app, PAID, "order_cancelled")
    story = await find(client, f"/orders/{PAID}/story", after=cancelled.json()["token"])
    assert story["status"] == "cancelled"
    assert told(story) == await recorded(app, PAID)
    assert [root["type"] for root in story["roots"]] == ["order.place", "order.cancel"]
    undoing = chain_to(story["roots"], "payment.refunded")
    assert undoing == ["order.cancel", "order.cancelled", "payment.refund", "payment.refunded"]
    for correlation in ("request-1", "request-2"):
        assert (await find(client, f"/stories/{correlation}"))["items"] == [story]


async def test_the_story_of_an_order_whose_payment_failed(app: EngineApp, client: httpx.AsyncClient) -> None:
    await begin(client, UNPAID, "request-1")
    await mailed(app, UNPAID, "order_placed", "payment_failed", "order_cancelled")
    story = await find(client, f"/orders/{UNPAID}/story")
    assert story["status"] == "cancelled"
    assert told(story) == await recorded(app, UNPAID)
    (root,) = story["roots"]
    released = [node for node in every_node([root]) if node["type"] == "inventory.released"]
    assert sorted(node["aggregate_id"] for node in released) == ["SKU-1", "SKU-2", "SKU-3"]
    assert chain_to([root], "order.cancelled")[-2:] == ["inventory.released", "order.cancelled"]
    mails = [node for node in every_node([root]) if node["kind"] == "mail"]
    causes = {node["id"]: node["type"] for node in every_node([root])}
    assert {node["detail"]: causes[node["caused_by"]] for node in mails} == {
        "order_placed": "order.placed",
        "payment_failed": "payment.failed",
        "order_cancelled": "order.cancelled",
    }


async def test_all_stories_of_a_request_come_page_by_page(app: EngineApp, client: httpx.AsyncClient) -> None:
    body = "\n".join(json.dumps(order("c-1", f"b-{n:02}")) for n in range(11))
    answer = await client.post("/orders/batch", content=body, headers={"X-Correlation-Id": "a batch/+"})
    seen: list[str] = []
    cursor: str | None = ""
    while cursor is not None:
        page = await find(client, "/stories/a batch%2F%2B", after=answer.json()["token"], limit=4, cursor=cursor)
        assert len(page["items"]) <= 4
        seen += [story["order_id"] for story in page["items"]]
        cursor = page["next_cursor"]
    assert seen == [f"b-{n:02}" for n in range(11)]


async def test_there_is_no_story_without_an_order(client: httpx.AsyncClient) -> None:
    check_problem(await client.get("/orders/nobody/story"), 404)
    assert await find(client, "/stories/nothing") == {"items": [], "next_cursor": None}
    for query, field in (("limit=101", "limit"), ("cursor=!", "cursor"), ("cursor=_w", "cursor")):
        problem = check_problem(await client.get(f"/stories/nothing?{query}"), 422)
        assert [error["field"] for error in problem["errors"]] == [field]


async def test_a_story_of_refused_commands_alone_is_told_too(client: httpx.AsyncClient) -> None:
    token = (await client.post("/orders/o-1/cancel")).json()["token"]
    story = await find(client, "/orders/o-1/story", after=token)
    assert (story["status"], story["customer_id"]) == (None, None)
    assert chain_to(story["roots"], "order.rejected") == ["order.cancel", "order.rejected"]
