"""Notifications in a running application: one mail per order and kind, late rather than never, orders unaffected."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio

from engine.declare.envelope import Message, Metadata, encode_envelope, new_envelope
from engine.declare.topic import Topic
from engine.faust.app import EngineApp
from streams.events.money import Money
from streams.events.notifications import NotificationKind, SendNotification
from streams.events.orders import CancelOrder, ConfirmOrder, OrderItem, PlaceOrder
from streams.events.payments import PaymentFailed
from streams.mail.address import parse_sender
from streams.mail.message import message_id
from streams.settings import Settings
from streams.topics import NOTIFICATION_COMMANDS, ORDER_COMMANDS, ORDER_EVENTS, PAYMENT_EVENTS
from tables.notifications import NOTIFICATIONS, Notification, NotificationKey
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
    running,
    start,
    stop,
    unique,
    wait_until,
)
from tests.integration.web import check_problem, client_of, find, order, place
from tests.mail_server import MailServer, mail_server

TOTAL = Money(Decimal("3.00"), "USD")
ITEMS = (OrderItem("SKU-1", 2, Money(Decimal("1.50"), "USD")),)
SENDER = parse_sender("orders@localhost")
AGENTS = ("decide-orders", "request-order-notifications", "request-payment-notifications", "send-notifications")


@pytest_asyncio.fixture
async def server() -> AsyncIterator[MailServer]:
    """Run a mail server."""
    async with mail_server() as server:
        yield server


@pytest.fixture(params=["memory"])
def settings(request: pytest.FixtureRequest, server: MailServer, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path, smtp_url=server.url)


@pytest_asyncio.fixture
async def app(settings: Settings) -> AsyncIterator[EngineApp]:
    """Run the whole application."""
    async with running(settings) as app:
        yield app


async def send(app: EngineApp, topic: Topic, key: str, *payloads: Message, times: int = 1) -> None:
    """Publish messages about the aggregate `key`, each as often as wanted under one id."""
    for payload in payloads:
        message = new_envelope(
            payload,
            event_id=unique("message"),
            aggregate_id=key,
            timestamp=datetime(2010, 12, 1, tzinfo=UTC),
            metadata=Metadata(),
        )
        await publish(app, topic, key, *[encode_envelope(message)] * times)


async def place_order(app: EngineApp, email: str | None, order_id: str = "") -> str:
    """Place an order and return its id."""
    order_id = order_id or unique("o")
    await send(app, ORDER_COMMANDS, order_id, PlaceOrder(order_id, "c-1", ITEMS, email=email))
    await caught_up(app, "decide-orders")
    return order_id


async def settled(app: EngineApp) -> None:
    """Wait until whatever follows from what was published has been done."""
    await caught_up(app, *AGENTS)


def notification(app: EngineApp, order_id: str, kind: NotificationKind = "order_placed") -> Notification | None:
    """The committed row of a mail."""
    task = app.engine.task(app.engine.partition_for(order_id.encode()))
    return task.read(NOTIFICATIONS, NotificationKey(order_id, kind))


def command(order_id: str, email: str = "ada@example.com", kind: NotificationKind = "order_placed") -> SendNotification:
    return SendNotification(order_id, kind, email, "c-1", ITEMS, TOTAL)


def id_of(order_id: str, kind: NotificationKind) -> str:
    return message_id(order_id, kind, SENDER)


def received_by(server: MailServer, address: str) -> Counter[str]:
    """How often each Message-ID has come."""
    return Counter(str(message["Message-ID"]) for message in server.messages_to(address))


@pytest.mark.parametrize("settings", TRANSPORTS, indirect=True)
async def test_each_mail_of_an_order_is_sent_once_however_often_events_are_redelivered(
    app: EngineApp, server: MailServer
) -> None:
    email = f"{unique('ada')}@example.com"
    confirmed, cancelled = await place_order(app, email), await place_order(app, email)
    await send(app, ORDER_COMMANDS, confirmed, ConfirmOrder(confirmed))
    await send(app, ORDER_COMMANDS, cancelled, CancelOrder(cancelled, "changed my mind"))
    await send(app, PAYMENT_EVENTS, cancelled, PaymentFailed(cancelled, "c-1", TOTAL, "card_declined"), times=2)
    await send(app, PAYMENT_EVENTS, confirmed, PaymentFailed(confirmed, None, None, "cancelled_before_charge"))
    await settled(app)
    for topic in (ORDER_EVENTS, NOTIFICATION_COMMANDS):
        for record in await read_topic(app, topic):
            if record.key in (confirmed.encode(), cancelled.encode()):
                await publish(app, topic, record.key.decode(), *[record.value or b""] * 2)
    await settled(app)
    assert received_by(server, email) == {
        id_of(confirmed, "order_placed"): 1,
        id_of(confirmed, "order_confirmed"): 1,
        id_of(cancelled, "order_placed"): 1,
        id_of(cancelled, "order_cancelled"): 1,
        id_of(cancelled, "payment_failed"): 1,
    }
    by_id = {str(message["Message-ID"]): message for message in server.messages_to(email)}
    text = by_id[id_of(cancelled, "order_cancelled")].get_content()
    assert "Reason: changed my mind" in text
    assert "2 x SKU-1" in text
    assert "Reason: the card was declined" in by_id[id_of(cancelled, "payment_failed")].get_content()
    assert {str(message["Date"]) for message in by_id.values()} == {"Wed, 01 Dec 2010 00:00:00 +0000"}


async def test_a_customer_is_told_when_the_saga_cancels_an_order_and_why(tmp_path: Path, server: MailServer) -> None:
    settings = make_settings("memory://", tmp_path, smtp_url=server.url, saga="orchestration")
    async with running(settings) as app:
        order_id = await place_order(app, "ada@example.com")  # of a product that nobody has stocked
        await wait_until(lambda: notification(app, order_id, "order_cancelled"), "the cancellation is told")
    placed, cancelled = server.messages_to("ada@example.com")
    assert placed["Message-ID"] == id_of(order_id, "order_placed")
    assert cancelled["Message-ID"] == id_of(order_id, "order_cancelled")
    assert "Reason: we no longer have one of the products" in cancelled.get_content()


async def test_two_commands_for_one_mail_send_it_once(app: EngineApp, server: MailServer) -> None:
    order_id = unique("o")
    await send(app, NOTIFICATION_COMMANDS, order_id, *[command(order_id)] * 3)
    await send(app, NOTIFICATION_COMMANDS, order_id, command(order_id, kind="payment_failed"))
    await settled(app)
    assert received_by(server, "ada@example.com") == {
        id_of(order_id, "order_placed"): 1,
        id_of(order_id, "payment_failed"): 1,
    }


async def test_orders_go_on_while_the_mail_server_is_away_and_every_mail_comes_once_later(
    tmp_path: Path, server: MailServer
) -> None:
    await server.stop()
    settings = make_settings("memory://", tmp_path, smtp_url=server.url)
    orders = [f"o-{number}" for number in range(20)]
    async with running(settings) as app, client_of(app) as client:
        for order_id in orders:
            token = await place(client, order(order_id=order_id, email=f"{order_id}@example.com"))
            assert (await find(client, f"/orders/{order_id}", after=token))["status"] == "pending"
        answer = await client.post(f"/orders/{orders[0]}/cancel?wait=10s")
        assert answer.status_code in (200, 201, 202)
        shown = await find(client, f"/orders/{orders[0]}", after=answer.json().get("token", token))
        assert shown["status"] == "cancelled"
        assert await find(client, "/orders/o-0/notifications") == {"order_id": "o-0", "items": []}
        assert server.mails == []
        await server.start()
        await settled(app)
        expected = Counter(f"{order_id}@example.com" for order_id in [*orders, orders[0]])
        assert Counter(mail.to for mail in server.mails) == expected
        shown = await find(client, "/orders/o-0/notifications")
        assert [item["kind"] for item in shown["items"]] == ["order_cancelled", "order_placed"]


async def test_mail_that_waits_is_sent_after_a_restart(tmp_path: Path, server: MailServer) -> None:
    await server.stop()
    settings = make_settings("embedded://", tmp_path, smtp_url=server.url)
    async with running(settings) as app:
        order_id = await place_order(app, "ada@example.com")
        await caught_up(app, "request-order-notifications")
    await server.start()
    async with running(settings) as app:
        await settled(app)
        assert received_by(server, "ada@example.com") == {id_of(order_id, "order_placed"): 1}


async def test_a_server_that_asks_to_come_back_later_gets_the_mail_later(app: EngineApp, server: MailServer) -> None:
    server.replies["RCPT"] = ["450 4.2.1 later", "450 4.2.1 later"]
    order_id = await place_order(app, "ada@example.com")
    await settled(app)
    assert server.asked == ["ada@example.com"] * 3
    assert len(server.mails) == 1
    row = notification(app, order_id)
    assert row is not None
    assert (row.state, row.detail) == ("sent", None)


async def test_a_refused_mail_is_kept_as_undeliverable_and_not_tried_again(app: EngineApp, server: MailServer) -> None:
    server.refused["gone@example.com"] = "550 5.1.1 <gone@example.com> moved away"
    order_id = await place_order(app, "gone@example.com")
    await place_order(app, "ada@example.com")
    await settled(app)
    await send(app, NOTIFICATION_COMMANDS, order_id, command(order_id, "gone@example.com"))
    await settled(app)
    assert server.asked.count("gone@example.com") == 1
    assert len(server.messages_to("ada@example.com")) == 1
    assert notification(app, order_id) == Notification(
        order_id,
        "order_placed",
        "gone@example.com",
        "undeliverable",
        id_of(order_id, "order_placed"),
        None,
        "550 5.1.1 <the address> moved away",
    )


@pytest.mark.parametrize("email", ["nobody", "ada@example.com\r\nBcc: eve@example.com", "ada@example.com, eve@e.com"])
async def test_what_is_no_address_is_undeliverable_and_nothing_is_sent(
    app: EngineApp, server: MailServer, email: str
) -> None:
    order_id = await place_order(app, email)
    await settled(app)
    row = notification(app, order_id)
    assert row is not None
    assert (row.state, row.to) == ("undeliverable", email)
    assert row.detail is not None
    assert row.detail.startswith("the address has ")
    assert server.asked == []


async def test_without_an_address_nothing_is_asked_for(app: EngineApp, server: MailServer) -> None:
    order_id = await place_order(app, None)
    await send(app, ORDER_COMMANDS, order_id, CancelOrder(order_id))
    await settled(app)
    assert await read_topic(app, NOTIFICATION_COMMANDS) == []
    assert server.connections == 0


async def test_one_stubborn_mailbox_does_not_hold_up_others(app: EngineApp, server: MailServer) -> None:
    server.refused["full@example.com"] = "452 4.2.2 mailbox full"
    await place_order(app, "full@example.com")
    await place_order(app, "ada@example.com")
    await wait_until(lambda: server.messages_to("ada@example.com"), "the other mail has come")
    assert "full@example.com" in server.asked
    server.refused.clear()
    await settled(app)
    assert len(server.messages_to("full@example.com")) == 1


# ---- crashes


class CommitFails:
    """A probe that lets no commit through while it is armed."""

    def __init__(self) -> None:
        self.armed = False
        self.failures = 0

    def __call__(self, step: str) -> None:
        if self.armed and step == "before 2":
            self.failures += 1
            raise RuntimeError("no commit")


@pytest.mark.parametrize("transport", DURABLE_TRANSPORTS, indirect=True)
async def test_a_crash_between_acceptance_and_commit_repeats_the_same_mail_and_no_other_time(
    transport: str, tmp_path: Path, server: MailServer
) -> None:
    settings = make_settings(transport, tmp_path, smtp_url=server.url)
    probe = CommitFails()
    email, order_id = f"{unique('ada')}@example.com", unique("o")
    app = await start(settings, probe=probe)
    server.hold = asyncio.Event()
    await place_order(app, email, order_id)
    await wait_until(lambda: email in server.asked, "the mail is on its way")
    await caught_up(app, "request-order-notifications")
    probe.armed = True
    server.hold.set()
    await wait_until(lambda: probe.failures and server.messages_to(email), "it was accepted but not committed")
    await crash(app)
    server.hold = None
    before = len(server.messages_to(email))
    async with running(settings) as again:
        await settled(again)
        mails = [mail for mail in server.mails if mail.to == email]
        assert len(mails) == before + 1
        assert len({mail.value for mail in mails}) == 1
        assert received_by(server, email) == {id_of(order_id, "order_placed"): before + 1}
        await send(again, NOTIFICATION_COMMANDS, order_id, command(order_id, email))
        await settled(again)
        assert len(server.messages_to(email)) == before + 1


@pytest.fixture
def transport(request: pytest.FixtureRequest) -> str:
    return broker_url(request)


async def test_stopping_with_mail_under_way_loses_nothing(tmp_path: Path, server: MailServer) -> None:
    settings = make_settings("embedded://", tmp_path, smtp_url=server.url)
    server.hold = asyncio.Event()
    app = await start(settings)
    for number in range(10):
        await place_order(app, f"a{number}@example.com")
    await wait_until(lambda: len(server.asked) >= 4, "mail is on its way")
    await stop(app)
    server.hold.set()
    server.hold = None
    await wait_until(lambda: not server.open_connections, "the connections are closed")
    async with running(settings) as again:
        await settled(again)
    assert {mail.to for mail in server.mails} == {f"a{number}@example.com" for number in range(10)}


# ---- records that are none


async def test_a_command_under_another_key_sends_nothing(app: EngineApp, server: MailServer) -> None:
    order_id = unique("o")
    message = new_envelope(
        command(order_id),
        event_id=unique("message"),
        aggregate_id=order_id,
        timestamp=datetime(2010, 12, 1, tzinfo=UTC),
        metadata=Metadata(),
    )
    await publish(app, NOTIFICATION_COMMANDS, "another", encode_envelope(message))
    await settled(app)
    assert len(await dead_letters(app, NOTIFICATION_COMMANDS)) == 1
    assert server.mails == []


# ---- without a mail server


@pytest.mark.parametrize("settings", TRANSPORTS, indirect=True)
async def test_without_a_mail_server_mail_goes_into_the_data_folder(settings: Settings, tmp_path: Path) -> None:
    async with running(settings.model_copy(update={"smtp_url": ""})) as app:
        order_id = await place_order(app, "ada@example.com")
        odd = await place_order(app, "ada@example.com", unique("../../ü"))
        await settled(app)
        written = tmp_path / "mail" / f"{order_id}-order_placed.eml"
        assert f"Message-ID: {id_of(order_id, 'order_placed')}".encode() in written.read_bytes()
        found = [path for path in (tmp_path / "mail").iterdir() if id_of(odd, "order_placed") in path.read_text()]
        assert len(found) == 1


# ---- the web view


@pytest_asyncio.fixture
async def client(app: EngineApp) -> AsyncIterator[httpx.AsyncClient]:
    """Give an HTTP client of the application."""
    async with client_of(app) as client:
        yield client


async def test_the_mails_of_an_order_are_shown_with_its_token_and_without_the_address(
    client: httpx.AsyncClient, server: MailServer
) -> None:
    server.refused["gone@example.com"] = "550 no such user gone@example.com"
    token = await place(client, order(order_id="o-1", email="ada@example.com"))
    shown = await find(client, "/orders/o-1/notifications", after=token, timeout="20s")
    sent_at = shown["items"][0]["sent_at"]
    assert shown == {
        "order_id": "o-1",
        "items": [
            {
                "kind": "order_placed",
                "state": "sent",
                "message_id": id_of("o-1", "order_placed"),
                "sent_at": sent_at,
                "detail": None,
            }
        ],
    }
    assert abs((datetime.now(UTC) - datetime.fromisoformat(sent_at)).total_seconds()) < 60
    token = await place(client, order(order_id="o-2", email="gone@example.com"))
    answer = await client.get("/orders/o-2/notifications", params={"after": token, "timeout": "20s"})
    (item,) = answer.json()["items"]
    assert (item["state"], item["sent_at"]) == ("undeliverable", None)
    assert item["detail"] == "550 no such user the address"
    assert "gone@" not in answer.text


async def test_an_order_without_mails_has_none_and_an_unknown_one_is_not_found(client: httpx.AsyncClient) -> None:
    token = await place(client, order(order_id="o-1"))
    shown: Any = await find(client, "/orders/o-1/notifications", after=token, timeout="20s")
    assert shown == {"order_id": "o-1", "items": []}
    check_problem(await client.get("/orders/o-2/notifications"), 404)


async def test_a_token_is_too_new_for_the_view_while_mail_waits(tmp_path: Path, server: MailServer) -> None:
    await server.stop()
    settings = make_settings("memory://", tmp_path, smtp_url=server.url)
    async with running(settings) as app, client_of(app) as client:
        token = await place(client, order(order_id="o-1", email="ada@example.com"))
        answer = await client.get("/orders/o-1/notifications", params={"after": token, "timeout": "200ms"})
        assert "send-notifications" in str(check_problem(answer, 504))
        await server.start()
        shown = await find(client, "/orders/o-1/notifications", after=token, timeout="20s")
        assert [item["state"] for item in shown["items"]] == ["sent"]
