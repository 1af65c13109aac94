"""Payments in a running application: one charge per order over crashes and outages, and what the others are told."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from agents import orders, payments
from domain.payments import FAILED, RECEIVED, REFUNDED
from engine.declare.envelope import Message, Metadata, encode_envelope, new_envelope
from engine.declare.topic import Topic
from engine.faust.app import EngineApp
from engine.log.ports import Position
from engine.positions.tokens import encode_token
from streams.events.money import Money
from streams.events.orders import CancelOrder, ConfirmOrder, OrderItem, PlaceOrder
from streams.events.payments import ChargePayment, RefundPayment
from streams.settings import Settings
from streams.topics import INTEGRATION_EVENTS, ORDER_COMMANDS, PAYMENT_COMMANDS, PAYMENT_EVENTS, SAGA_REPLIES
from tables.orders import ORDERS
from tables.payments import PAYMENTS
from tests.apps import (
    DURABLE_TRANSPORTS,
    TRANSPORTS,
    broker_url,
    caught_up,
    crash,
    dead_letters,
    make_settings,
    publish,
    read_topic,
    row,
    running,
    start,
    unique,
    wait_until,
)
from tests.integration.web import check_problem, client_of, find, order, place
from tests.payment_server import PaymentServer, payment_server
from tests.unit.test_envelope import TEN_O_CLOCK

AMOUNT = Money(Decimal("19.90"), "USD")


class Crash(Exception):
    """The process ends here."""


@pytest_asyncio.fixture
async def server() -> AsyncIterator[PaymentServer]:
    async with payment_server() as server:
        yield server


@pytest.fixture(params=TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path, server: PaymentServer) -> Settings:
    return make_settings(broker_url(request), tmp_path, payment_url=server.url)


@pytest.fixture(params=DURABLE_TRANSPORTS)
def durable(request: pytest.FixtureRequest, tmp_path: Path, server: PaymentServer) -> Settings:
    return make_settings(broker_url(request), tmp_path, payment_url=server.url)


def charge(order_id: str, amount: Money = AMOUNT) -> ChargePayment:
    return ChargePayment(order_id, "customer-1", amount)


async def send(app: EngineApp, topic: Topic, *payloads: Message, event_id: str | None = None) -> list[Position]:
    """Write commands as any client would, each under an id of its own unless one is given."""
    positions = []
    for payload in payloads:
        order_id = str(getattr(payload, "order_id"))  # noqa: B009
        command = new_envelope(
            payload,
            event_id=event_id or unique("command"),
            aggregate_id=order_id,
            timestamp=TEN_O_CLOCK,
            metadata=Metadata(),
        )
        positions += await publish(app, topic, order_id, encode_envelope(command))
    return positions


def new_orders(count: int) -> list[str]:
    """Ids that nobody else uses: applications on a shared Kafka have their topics in common."""
    return [unique("order") for _ in range(count)]


def statuses(app: EngineApp, order_ids: Sequence[str]) -> list[str | None]:
    found = [row(app, PAYMENTS, order_id) for order_id in order_ids]
    found = [row(app, PAYMENTS, order_id) for order_id in order_ids]
    return [None if payment is None else payment.status for payment in found]


async def values(app: EngineApp, topic: Topic, order_id: str) -> list[bytes]:
    """What was written to a topic under an order's id, as bytes."""
    return [record.value or b"" for record in await read_topic(app, topic) if record.key == order_id.encode()]


async def told(app: EngineApp, topic: Topic, order_id: str) -> list[tuple[str, int | None]]:
    """Type and aggregate version of what was written to a topic under an order's id."""
    events = [json.loads(value) for value in await values(app, topic, order_id)]
    return [(event["eventType"], event.get("aggregateVersion")) for event in events]


# ---- the gateway


async def test_calls_of_many_orders_are_at_the_gateway_at_once(settings: Settings, server: PaymentServer) -> None:
    order_ids = new_orders(20)
    async with running(settings, [payments.service]) as app:
        await caught_up(app)  # with what other tests have left on a shared Kafka
        server.hold()
        await send(app, PAYMENT_COMMANDS, *map(charge, order_ids))
        await wait_until(lambda: server.open == len(order_ids), "all calls are at the gateway")
        assert statuses(app, order_ids) == [None] * len(order_ids)
        server.let_go.set()
        await caught_up(app)
        assert statuses(app, order_ids) == [RECEIVED] * len(order_ids)


async def test_commands_of_an_order_take_effect_in_their_order_and_each_once(
    settings: Settings, server: PaymentServer
) -> None:
    order_ids = new_orders(10)
    async with running(settings, [payments.service]) as app:
        for command in (charge, RefundPayment, charge, RefundPayment):
            await send(app, PAYMENT_COMMANDS, *map(command, order_ids))
        await caught_up(app)
        assert statuses(app, order_ids) == [REFUNDED] * len(order_ids)
        assert {tuple(server.paths(order_id)) for order_id in order_ids} == {("/charges", "/refunds")}
        assert {server.money[order_id] for order_id in order_ids} == {Decimal(0)}


async def test_a_refused_refund_leaves_the_money_and_is_asked_for_anew_under_a_new_key(
    settings: Settings, server: PaymentServer
) -> None:
    (order_id,) = new_orders(1)
    async with running(settings, [payments.service]) as app:
        server.refunds_declined.add(order_id)
        await send(app, PAYMENT_COMMANDS, charge(order_id))
        await send(app, PAYMENT_COMMANDS, RefundPayment(order_id), event_id=f"refund-{order_id}")
        await caught_up(app)
        assert statuses(app, [order_id]) == [RECEIVED]
        server.refunds_declined.clear()
        await send(app, PAYMENT_COMMANDS, RefundPayment(order_id), event_id=f"refund-{order_id}")
        await caught_up(app)
        assert statuses(app, [order_id]) == [REFUNDED]
        keys = [request.key for request in server.requests if request.body["order_id"] == order_id]
        assert keys == [order_id, f"refund:{order_id}:1", f"refund:{order_id}:2"]
        expected = [("payment.received", 1), ("payment.refund_failed", 2), ("payment.refunded", 3)]
        assert await told(app, PAYMENT_EVENTS, order_id) == expected
        assert await told(app, SAGA_REPLIES, order_id) == expected
        ids = {json.loads(value)["eventId"] for value in await values(app, PAYMENT_EVENTS, order_id)}
        assert len(ids) == 3


async def test_a_crash_between_the_call_and_its_commit_charges_once(durable: Settings, server: PaymentServer) -> None:
    order_ids = new_orders(5)
    app = await start(durable, [payments.service])
    await caught_up(app)
    server.hold()
    await send(app, PAYMENT_COMMANDS, *map(charge, order_ids))
    await wait_until(lambda: server.open == len(order_ids), "the gateway has taken the money")
    await crash(app)
    server.let_go.set()
    async with running(durable, [payments.service]) as app:
        await caught_up(app)
        assert statuses(app, order_ids) == [RECEIVED] * len(order_ids)
        assert {server.money[order_id] for order_id in order_ids} == {AMOUNT.amount}
        assert {tuple(server.paths(order_id)) for order_id in order_ids} == {("/charges", "/charges")}
        assert [await told(app, PAYMENT_EVENTS, order_id) for order_id in order_ids] == [[("payment.received", 1)]] * 5


@pytest.mark.parametrize("step", ["before 2", "after 3", "after 5"])
async def test_a_commit_that_fails_after_the_answer_charges_and_tells_once(
    settings: Settings, server: PaymentServer, step: str
) -> None:
    order_ids = new_orders(5)
    left: list[str] = []

    def fail_once(reached: str) -> None:
        if reached in left and server.money.keys() & set(order_ids):
            left.remove(reached)
            raise Crash(reached)

    async with running(settings, [payments.service], probe=fail_once) as app:
        await caught_up(app)
        left.append(step)
        await send(app, PAYMENT_COMMANDS, *map(charge, order_ids))
        await wait_until(lambda: not left, "a commit has failed")
        await caught_up(app)
        assert statuses(app, order_ids) == [RECEIVED] * len(order_ids)
        assert {server.money[order_id] for order_id in order_ids} == {AMOUNT.amount}
        assert [await told(app, PAYMENT_EVENTS, order_id) for order_id in order_ids] == [[("payment.received", 1)]] * 5


async def test_while_the_gateway_is_away_orders_go_on_and_payments_are_made_when_it_is_back(
    settings: Settings, server: PaymentServer
) -> None:
    order_ids = new_orders(10)
    async with running(settings, [payments.service, orders.service]) as app:
        await server.stop()
        await send(app, PAYMENT_COMMANDS, *map(charge, order_ids))
        item = OrderItem("SKU-1", 1, AMOUNT)
        await send(app, ORDER_COMMANDS, *(PlaceOrder(order_id, "customer-1", (item,)) for order_id in order_ids))
        await caught_up(app, "decide-orders")
        assert {order and order.status for order in (row(app, ORDERS, order_id) for order_id in order_ids)} == {
            "pending"
        }
        assert statuses(app, order_ids) == [None] * len(order_ids)
        await server.start()
        await caught_up(app)
        assert statuses(app, order_ids) == [RECEIVED] * len(order_ids)
        assert await _letters_of(app, order_ids) == []


async def test_a_gateway_that_is_set_up_wrongly_loses_no_payment(settings: Settings, server: PaymentServer) -> None:
    (order_id,) = new_orders(1)
    wrong = settings.model_copy(update={"payment_url": f"{server.url}/nothing"})
    async with running(wrong, [payments.service]) as app:
        (position,) = await send(app, PAYMENT_COMMANDS, charge(order_id))
        number = position.partition
        await wait_until(
            lambda: app.engine.task(number).dispatch.is_busy_with(PAYMENT_COMMANDS.name), "the command is there"
        )
        assert await _letters_of(app, [order_id]) == []
        assert statuses(app, [order_id]) == [None]
        if settings.transport == "memory":
            return
    async with running(settings, [payments.service]) as app:
        await caught_up(app)
        assert statuses(app, [order_id]) == [RECEIVED]


async def _letters_of(app: EngineApp, order_ids: Sequence[str]) -> list[str]:
    """The types of errors of these orders' dead letters."""
    keys = {order_id.encode() for order_id in order_ids}
    letters = [record for record in await dead_letters(app, PAYMENT_COMMANDS) if record.key in keys]
    return [dict(record.headers)["error_type"].decode() for record in letters]


async def test_what_is_no_payment_command_asks_nobody_and_is_a_dead_letter(
    settings: Settings, server: PaymentServer
) -> None:
    order_id, other = new_orders(2)
    async with running(settings, [payments.service, orders.service]) as app:
        await send(app, PAYMENT_COMMANDS, charge(order_id))
        await publish(app, PAYMENT_COMMANDS, order_id, b'{"no": "envelope"}')
        await send(app, PAYMENT_COMMANDS, RefundPayment(order_id), ConfirmOrder(order_id))
        await caught_up(app)
        assert statuses(app, [order_id, other]) == [REFUNDED, None]
        assert server.paths(order_id) == ["/charges", "/refunds"]
        assert sorted(await _letters_of(app, [order_id])) == ["UndecodableRecord", "UnknownEventType"]


async def test_a_command_under_a_wrong_key_or_in_a_wrong_partition_takes_no_money(
    settings: Settings, server: PaymentServer
) -> None:
    order_id, other = new_orders(2)
    async with running(settings, [payments.service]) as app:
        command = encode_envelope(
            new_envelope(
                charge(other),
                event_id=unique("command"),
                aggregate_id=other,
                timestamp=TEN_O_CLOCK,
                metadata=Metadata(),
            )
        )
        await publish(app, PAYMENT_COMMANDS, order_id, command)
        elsewhere = (app.engine.partition_for(other.encode()) + 1) % settings.partitions
        await app.engine.broker.publish(PAYMENT_COMMANDS.name, elsewhere, [(other.encode(), command, ())])
        await caught_up(app)
        assert sorted(await _letters_of(app, [order_id, other])) == ["KeyMismatch", "WrongPartition"]
        assert server.paths(other) == []


# ---- what the others are told


async def test_an_event_goes_to_events_and_saga_alike_and_a_repeated_command_is_told_to_the_saga_alone(
    settings: Settings, server: PaymentServer
) -> None:
    paid, refused, cancelled = new_orders(3)
    server.declined.add(refused)
    async with running(settings, [payments.service]) as app:
        await send(app, PAYMENT_COMMANDS, charge(paid), charge(paid), RefundPayment(paid), RefundPayment(paid))
        await send(app, PAYMENT_COMMANDS, charge(refused), charge(refused), RefundPayment(refused))
        await send(app, PAYMENT_COMMANDS, RefundPayment(cancelled), charge(cancelled))
        await caught_up(app)
        assert [server.paths(order_id) for order_id in (paid, refused, cancelled)] == [
            ["/charges", "/refunds"],
            ["/charges"],
            [],
        ]
        assert await told(app, PAYMENT_EVENTS, paid) == [("payment.received", 1), ("payment.refunded", 2)]
        assert await told(app, SAGA_REPLIES, paid) == [
            ("payment.received", 1),
            ("payment.received", None),
            ("payment.refunded", 2),
            ("payment.refunded", None),
        ]
        assert await told(app, PAYMENT_EVENTS, refused) == [("payment.failed", 1)]
        failed = ("payment.failed", None)
        assert await told(app, SAGA_REPLIES, refused) == [("payment.failed", 1), failed, failed]
        assert await told(app, PAYMENT_EVENTS, cancelled) == [("payment.failed", 1)]
        assert await told(app, SAGA_REPLIES, cancelled) == [("payment.failed", 1), failed]
        for order_id in (paid, refused, cancelled):
            replies = await values(app, SAGA_REPLIES, order_id)
            events = await values(app, PAYMENT_EVENTS, order_id)
            assert [reply for reply in replies if b"aggregateVersion" in reply] == events
            assert len({json.loads(reply)["eventId"] for reply in replies}) == len(replies)


async def test_the_outside_is_told_of_payments_without_what_is_internal(
    settings: Settings, server: PaymentServer
) -> None:
    paid, refused = new_orders(2)
    server.declined.add(refused)
    async with running(settings, [payments.service]) as app:
        await send(app, PAYMENT_COMMANDS, charge(paid), RefundPayment(paid), charge(refused))
        await caught_up(app)
        published = [json.loads(value) for value in await values(app, INTEGRATION_EVENTS, paid)]
        money = {"order_id": paid, "customer_id": "customer-1", "amount": {"amount": "19.90", "currency": "USD"}}
        assert [(event["event_type"], event["payload"]) for event in published] == [
            ("payment.received", money),
            ("payment.refunded", money),
        ]
        (failed,) = [json.loads(value) for value in await values(app, INTEGRATION_EVENTS, refused)]
        assert (failed["event_type"], failed["payload"]["reason"]) == ("payment.failed", "card_declined")


# ---- the view


@pytest.fixture(params=["memory://", "embedded://"])
def local(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Settings]:
    return lambda **changes: make_settings(request.param, tmp_path, **changes)


async def test_the_view_shows_a_payment_from_the_order_to_the_refund(local: Callable[..., Settings]) -> None:
    async with running(local()) as app, client_of(app) as client:
        check_problem(await client.get("/payments/order-1"), 404)
        token = await place(client, order("customer-1", "order-1", occurred_at="2010-12-01T00:00:00Z"))
        pending: dict[str, Any] = {
            "order_id": "order-1",
            "customer_id": "customer-1",
            "status": "pending",
            "amount": {"amount": "3.00", "currency": "USD"},
            "reference": None,
            "reason": None,
            "refund_reference": None,
            "charged_at": None,
            "failed_at": None,
            "refunded_at": None,
            "version": 0,
        }
        assert await find(client, "/payments/order-1", after=token) == pending
        time = "2026-11-23T10:00:00.000000Z"
        received = pending | {
            "status": RECEIVED,
            "reference": "charge-order-1",
            "charged_at": time,
            "version": 1,
        }
        token = encode_token(await send(app, PAYMENT_COMMANDS, charge("order-1", Money(Decimal("3.00"), "USD"))))
        assert await find(client, "/payments/order-1", after=token) == received
        token = encode_token(await send(app, PAYMENT_COMMANDS, RefundPayment("order-1")))
        assert await find(client, "/payments/order-1", after=token) == received | {
            "status": REFUNDED,
            "refund_reference": "refund-order-1",
            "refunded_at": time,
            "version": 2,
        }


async def test_the_view_says_why_a_payment_failed(local: Callable[..., Settings]) -> None:
    async with running(local(payment_decline=1.0)) as app, client_of(app) as client:
        token = encode_token(await send(app, PAYMENT_COMMANDS, charge("order-1"), RefundPayment("order-2")))
        declined = await find(client, "/payments/order-1", after=token)
        assert (declined["status"], declined["reason"], declined["version"]) == (FAILED, "card_declined", 1)
        assert (declined["reference"], declined["failed_at"]) == (None, "2026-11-23T10:00:00.000000Z")
        assert declined["amount"] == {"amount": "19.90", "currency": "USD"}
        cancelled = await find(client, "/payments/order-2", after=token)
        assert (cancelled["status"], cancelled["reason"]) == (FAILED, "cancelled_before_charge")
        assert (cancelled["customer_id"], cancelled["amount"]) == (None, None)


async def test_an_order_that_will_never_be_paid_has_no_payment(local: Callable[..., Settings]) -> None:
    async with running(local()) as app, client_of(app) as client:
        await send(app, ORDER_COMMANDS, PlaceOrder("rejected", "customer-1", ()), CancelOrder("unknown"))
        await place(client, order(order_id="cancelled"))
        await client.post("/orders/cancelled/cancel")
        await caught_up(app, "decide-orders")
        for order_id in ("rejected", "unknown", "cancelled", "nobody"):
            check_problem(await client.get(f"/payments/{order_id}"), 404)
        check_problem(await client.get("/payments/order-1", params={"after": "x"}), 422)
