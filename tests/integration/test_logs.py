"""What a worker logs while things fail: where and which record, but nothing of what is in it."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from agents import notifications, sagas
from engine.declare.envelope import Envelope
from engine.declare.service import Service
from engine.declare.timers import Timer
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.app import EngineApp
from engine.observe.logs import log_handler
from engine.observe.quiet import Quiet
from streams.app import create_app
from streams.events.orders import OrderPlaced
from streams.settings import APPLICATION, Settings
from streams.topics import ORDER_COMMANDS, ORDER_EVENTS
from tests.apps import at_rest, caught_up, make_settings, publish, running, wait_until
from tests.integration.web import client_of, order
from tests.mail_server import accept_only, mail_server
from tests.payment_server import payment_server
from tests.trace_receiver import trace_receiver

# What must not be in any line, wherever it is put.
CUSTOMER, ADDRESS, PLACE = "jane-planted", "jane.planted@example.com", "Planted-Street-1"
PLANTED = (CUSTOMER, ADDRESS, PLACE, "t0ken-planted", "pass-planted", "refund-planted")


class Log:
    """The lines that were written to stderr."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self.text = ""

    def read(self) -> str:
        """Everything that was written so far."""
        self.text += self._capsys.readouterr().err
        return self.text

    def lines(self) -> list[dict[str, Any]]:
        """The lines as JSON, every one of them."""
        return [json.loads(line) for line in self.read().splitlines()]

    def find(self, *words: str) -> dict[str, Any]:
        """The first line whose message has these words."""
        found = [line for line in self.lines() if all(word in line["message"] for word in words)]
        assert found, (words, self.text)
        return found[0]


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Log]:
    """Give what is logged; `logging_as` begins it. Nothing is kept back because another test has said it before."""
    for module in (sagas, notifications):
        monkeypatch.setattr(module, "_quiet", Quiet())
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in APPLICATION.own_packages]
    yield Log(capsys)
    for logger, level in before:
        logger.setLevel(level)


class logging_as:
    """Logs in the form of these settings, at INFO, while the block lasts."""

    def __init__(self, settings: Settings) -> None:
        self._handler = log_handler(settings)

    def __enter__(self) -> None:
        logging.getLogger().addHandler(self._handler)
        for name in APPLICATION.own_packages:
            logging.getLogger(name).setLevel("INFO")

    def __exit__(self, *_: object) -> None:
        logging.getLogger().removeHandler(self._handler)


def moody() -> Service:
    """A service whose handlers fail with words from the record, for good or not, and whose timers do."""
    service = Service("moody")

    @service.agent("fail-on-orders", ORDER_EVENTS, help="Fail.").on(OrderPlaced)
    def fail(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
        work.schedule("moody", event.aggregate_id, work.now_ms)
        if event.aggregate_id == "o-fails":
            raise ValueError(f"cannot reach {event.payload.email} of {event.payload.customer_id}, {PLACE}")

    @service.on_timer("moody")
    def fail_again(timer: Timer, work: UnitOfWork) -> None:
        raise KeyError(ADDRESS)

    return service


def command(order_id: str, event_type: str = "order.place", **payload: Any) -> bytes:
    """A command as an outsider writes it."""
    item = {"productId": "SKU-1", "quantity": 1, "price": {"amount": "1", "currency": "USD"}}
    value = {
        "eventId": f"e-{order_id}",
        "eventType": event_type,
        "aggregateId": order_id,
        "aggregateType": "Order",
        "timestamp": "2026-11-23T10:00:00.000000Z",
        "version": 1,
        "metadata": {"correlationId": f"request-{order_id}", "userId": CUSTOMER},
        "payload": {"orderId": order_id, "customerId": CUSTOMER, "items": [item], "email": ADDRESS, **payload},
    }
    return json.dumps(value).encode()


async def fail_in_every_way(app: EngineApp) -> None:
    """Give the application what it cannot process."""
    place = ORDER_COMMANDS
    await publish(app, place, "o-1", f'{{"to": "{ADDRESS}", '.encode())
    await publish(app, place, "o-2", command("o-2", items=PLACE))
    await publish(app, place, "o-3", command("o-3", items=[{"productId": PLACE, "quantity": ADDRESS, "price": 1}]))
    await publish(app, place, "o-4", command("o-4", event_type="order.unheard_of"))
    await publish(app, place, ADDRESS, command("o-5"))
    await publish(app, place, "o-6", command("o-6", orderId=ADDRESS))
    await publish(app, place, "o-7", command("o-7", country="\n12:00:00 CRITICAL forged \x1b[2J"))
    await publish(app, place, "forged\n12:00:00 CRITICAL forged", command("o-8\n12:00:00 CRITICAL forged"))
    await publish(app, place, "o-fails", command("o-fails"))


@pytest.mark.parametrize("form", ["json", "text"])
async def test_failures_are_logged_with_their_place_and_without_what_is_in_the_records(
    tmp_path: Path, log: Log, form: str
) -> None:
    async with (
        payment_server() as payments,
        mail_server(**accept_only("me", "pass-planted")) as mails,
    ):
        mails.refused[ADDRESS] = f"550 5.1.1 <{ADDRESS}> has moved to {ADDRESS}"
        settings = make_settings(
            "memory://",
            tmp_path,
            log_format=form,
            saga="orchestration",
            saga_retries=0,
            retry_count=1,
            api_token="t0ken-planted",
            smtp_url=mails.url.replace("//", "//me:pass-planted@"),
            payment_url=payments.url.replace("//", "//shop:refund-planted@"),
        )
        services = [*create_app(settings).services, moody()]
        with logging_as(settings):
            async with (
                running(settings, services) as app,
                client_of(app, Authorization="Bearer t0ken-planted") as client,
            ):
                await client.put("/inventory/SKU-1", json={"quantity": 10})
                await fail_in_every_way(app)
                # Paid, cancelled, and the money cannot be given back.
                payments.refunds_declined.add("o-stuck")
                headers = {"X-Correlation-Id": "request-stuck"}
                await client.post("/orders", json=order(CUSTOMER, "o-stuck", email=ADDRESS), headers=headers)
                await at_rest(app)
                await client.post("/orders/o-stuck/cancel", json={"reason": PLACE})
                await at_rest(app)
    text = log.read()
    assert not [word for word in PLANTED if word in text]
    assert not [line for line in text.splitlines() if line.startswith("12:00:00 CRITICAL forged")]
    assert "\x1b" not in text
    if form == "text":
        for words in ("correlation_id=request-o-fails", " is undeliverable", "stands as compensation_failed"):
            assert words in text
        return

    assert {"timestamp", "level", "logger", "message"} <= set.intersection(*(set(line) for line in log.lines()))
    retried = log.find("order-events/", "failed, 1. retry of 1 in 0.0 s: ValueError in ")
    place = {"topic": "order-events", "agent": "fail-on-orders", "event_type": "order.placed"}
    ids = {"aggregate_id": "o-fails", "correlation_id": "request-o-fails", "error_type": "ValueError"}
    assert (place | ids).items() <= retried.items()
    assert {"partition", "offset", "event_id"} <= retried.keys()
    buried = log.find("order-commands/", "is dead letter", "UndecodableRecord")
    assert {
        "topic": "order-commands",
        "agent": "decide-orders",
        "error_type": "UndecodableRecord",
    }.items() <= buried.items()
    assert buried["dead_letter_id"] in buried["message"]
    assert {"partition", "offset"} <= buried.keys()
    assert log.find("is dead letter", "UnknownEventType")["correlation_id"] == "request-o-4"
    assert log.find("timer moody failed")["topic"] == "timer moody"
    assert log.find("timer moody is dead letter")["error_type"] == "KeyError"
    mail = log.find("the mail ", " is undeliverable")
    assert {"order_id", "correlation_id", "partition", "offset"} <= mail.keys()
    saga = log.find("stands as compensation_failed")
    stuck = {"order_id": "o-stuck", "correlation_id": "request-stuck", "agent": "decide-payments"}
    assert stuck.items() <= saga.items()


async def test_a_mail_server_that_is_not_there_yet_is_told_without_address_and_password(
    tmp_path: Path, log: Log
) -> None:
    async with mail_server(**accept_only("me", "another")) as mails:
        settings = make_settings(
            "memory://", tmp_path, log_format="json", smtp_url=mails.url.replace("//", "//me:pass-planted@")
        )
        with logging_as(settings):
            async with running(settings) as app, client_of(app) as client:
                await client.post("/orders", json=order(CUSTOMER, "o-1", email=ADDRESS))
                await wait_until(lambda: "waits at" in log.read() or "are paused" in log.read(), "the log says so", 20)
    assert not [word for word in PLANTED if word in log.text]
    assert "refuses the user and password of ORDERS_SMTP_URL" in log.text
    assert log.find("refuses the user")["agent"] == "send-notifications"


async def test_lines_have_the_trace_of_what_they_are_about(
    tmp_path: Path, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken, trace_id = Service("broken"), "4bf92f3577b34da6a3ce929d0e0e4736"

    @broken.route("POST", "/broken/{customer_id}")
    async def fail(request: Any) -> Any:
        raise RuntimeError("no")

    async with trace_receiver(monkeypatch):
        settings = make_settings("memory://", tmp_path, log_format="json")
        services = [*create_app(settings).services, broken]
        with logging_as(settings):
            async with running(settings, services) as app, client_of(app) as client:
                headers = {"traceparent": f"00-{trace_id}-00f067aa0ba902b7-01", "X-Correlation-Id": "request-1"}
                await client.post(f"/broken/{CUSTOMER}", headers=headers)
                record = (b"o-1", b"nonsense", [("traceparent", headers["traceparent"].encode())])
                await app.engine.broker.publish(ORDER_COMMANDS.name, app.engine.partition_for(b"o-1"), [record])
                await caught_up(app)
    failed = log.find("POST /broken/{customer_id} failed")
    assert {"trace_id": trace_id, "correlation_id": "request-1"}.items() <= failed.items()
    assert failed["exception"].endswith("RuntimeError: no")
    assert CUSTOMER not in log.text
    assert log.find("is dead letter")["trace_id"] == trace_id
    assert "trace_id" not in log.find("generation")
