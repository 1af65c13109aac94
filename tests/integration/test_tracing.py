"""Tracing as a collector sees it: one order is one trace, from the request to the mail, and no batch blurs it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine.declare.service import Service
from engine.declare.timers import Timer
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.app import EngineApp
from engine.log.ports import Headers, Record
from engine.work.tracing import Untraced
from streams.app import create_app
from streams.topics import INVENTORY_COMMANDS, ORDER_COMMANDS, ORDER_EVENTS
from tests.apps import (
    HandlerFailed,
    Tally,
    at_rest,
    caught_up,
    dead_letters,
    make_settings,
    read_topic,
    running,
    unique,
    wait_until,
)
from tests.integration.test_web_routing import new_worker, settled
from tests.integration.web import client_of, order
from tests.kafka import KafkaBroker
from tests.mail_server import mail_server
from tests.payment_server import payment_server
from tests.trace_receiver import ReceivedSpan, TraceReceiver, trace_receiver

ROOT = Path(__file__).resolve().parents[2]
SERVER, CLIENT, PRODUCER, CONSUMER = 2, 3, 4, 5
ERROR = 2
TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"

# From the request to the mail that tells that the order is confirmed.
LINE = [
    "POST /orders",
    "send order-commands",
    "process order-commands order.place",
    "react order.placed order.placed",
    "process inventory-commands inventory.reserve",
    "process saga-replies inventory.reserved",
    "react inventory.reserved inventory.reserved",
    "process payment-commands payment.charge",
    "react payment.received payment.received",
    "react order.confirm order.confirm",
    "process order-events order.confirmed",
    "process notification-commands notification.send",
    "send mail",
]


@pytest_asyncio.fixture
async def receiver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TraceReceiver]:
    """Run a collector, and let applications send their spans there."""
    async with trace_receiver(monkeypatch) as receiver:
        yield receiver


def mail_of_confirmation(receiver: TraceReceiver, name: str = "send mail") -> list[ReceivedSpan]:
    """The spans that sent the mail of a confirmed order."""
    return [span for span in receiver.named(name) if span.attributes["orders.mail.kind"] == "order_confirmed"]


def trace_of(record: Record) -> str | None:
    """The trace id in a record's headers."""
    found = [value.decode() for name, value in record.headers if name == "traceparent"]
    assert len(found) <= 1, record.headers
    return found[0].split("-")[1] if found else None


async def give(app: EngineApp, topic: Topic, key: str, value: bytes, *headers: Headers) -> None:
    """Write the same record once for each set of headers, all in one batch."""
    records = [(key.encode(), value, of_record) for of_record in headers]
    await app.engine.broker.publish(topic.name, app.engine.partition_for(key.encode()), records)


# ---- one order


async def test_an_order_is_one_trace_from_the_request_to_the_mail(tmp_path: Path, receiver: TraceReceiver) -> None:
    async with payment_server() as payments, mail_server() as mails:
        settings = make_settings(
            "memory://", tmp_path, saga="orchestration", payment_url=payments.url, smtp_url=mails.url
        )
        async with running(settings) as app, client_of(app) as client:
            await client.put("/inventory/SKU-1", json={"quantity": 10})
            await at_rest(app)
            body = order("customer-1", "traced-1", email="jane@example.com")
            answer = await client.post(
                "/orders", json=body, headers={"traceparent": TRACEPARENT, "X-Correlation-Id": "request-7"}
            )
            assert answer.status_code == 202
            await receiver.wait_for(lambda: mail_of_confirmation(receiver), "the last mail")

    (mail,) = mail_of_confirmation(receiver)
    line = receiver.ancestry(mail)[::-1]
    assert [span.says for span in line] == LINE
    assert {span.trace_id for span in line} == {TRACE}
    assert line[0].parent_id == PARENT  # the client's own span
    assert [line[0].kind, line[1].kind, line[2].kind, mail.kind] == [SERVER, PRODUCER, CONSUMER, CLIENT]
    assert {span.attributes.get("orders.correlation_id") for span in line[2:-1]} == {"request-7"}
    assert line[0].attributes["orders.correlation_id"] == "request-7"
    assert not [span for span in receiver.trace(TRACE) if span.status == ERROR]
    assert line[2].attributes["messaging.destination.partition.id"].isdigit()
    assert line[2].attributes["messaging.kafka.offset"] == 0

    (charge,) = receiver.named("POST /charges")
    assert charge.kind == CLIENT
    assert [span.says for span in receiver.ancestry(charge)][1] == "process payment-commands payment.charge"
    assert payments.traceparents == [f"00-{TRACE}-{charge.span_id}-01"]
    told = str(receiver.spans)
    assert "jane@example.com" not in told
    assert "customer-1" not in told


async def test_outsiders_may_give_a_trace_and_what_is_malformed_starts_one(
    tmp_path: Path, receiver: TraceReceiver
) -> None:
    tally = Tally()
    good = [("traceparent", TRACEPARENT.encode()), ("tracestate", b"vendor=x")]
    bad = [
        [("traceparent", b"00-abc-def-01")],
        [("traceparent", f"00-{'0' * 32}-{PARENT}-01".encode())],
        [("traceparent", b"\xff\xfe")],
        [("traceparent", TRACEPARENT.encode()), ("traceparent", TRACEPARENT.encode())],
        [("tracestate", b"vendor=x")],
        [],
    ]
    async with running(make_settings("memory://", tmp_path), [tally.service]) as app, client_of(app) as client:
        await give(app, tally.source, "k", b"v", good, *bad)
        await client.get("/nowhere", headers={"traceparent": "nonsense"})
        await receiver.wait_for(lambda: receiver.named("GET"), "the request")
        await caught_up(app)
        sent = await read_topic(app, tally.output)
        await receiver.wait_for(lambda: receiver.named("process " + tally.source.name)[6:], "every record")
    first, *others = receiver.named(f"process {tally.source.name}")
    assert (first.trace_id, first.parent_id) == (TRACE, PARENT)
    assert {span.parent_id for span in others} == {""}
    assert len({span.trace_id for span in others} - {TRACE}) == len(bad)
    assert [trace_of(record) for record in sent] == [span.trace_id for span in (first, *others)]
    assert [value for name, value in sent[0].headers if name == "tracestate"] == [b"vendor=x"]
    (request,) = receiver.named("GET")
    assert request.parent_id == ""


# ---- many in one batch


async def test_orders_of_one_batch_keep_their_traces_apart_and_the_commit_is_linked_to_them(
    tmp_path: Path, receiver: TraceReceiver
) -> None:
    async with running(make_settings("memory://", tmp_path, partitions=1, saga="orchestration")) as app:
        async with client_of(app) as client:
            await client.put("/inventory/SKU-1", json={"quantity": 1000})
        await at_rest(app)
        traces = {f"o-{number}": f"{number + 1:032x}" for number in range(5)}
        records = []
        for order_id, trace_id in traces.items():
            command = {
                "eventId": f"place-{order_id}",
                "eventType": "order.place",
                "aggregateId": order_id,
                "aggregateType": "Order",
                "timestamp": "2026-11-23T10:00:00.000000Z",
                "version": 1,
                "metadata": {"correlationId": order_id, "causationId": None, "userId": None},
                "payload": {
                    "orderId": order_id,
                    "customerId": "c",
                    "items": [{"productId": "SKU-1", "quantity": 1, "price": {"amount": "1", "currency": "USD"}}],
                    "email": "c@example.com",
                },
            }
            headers = [("traceparent", f"00-{trace_id}-{PARENT}-01".encode())]
            records.append((order_id.encode(), json.dumps(command).encode(), headers))
        await app.engine.broker.publish(ORDER_COMMANDS.name, 0, records)
        await at_rest(app)
        # Every record that followed, in whatever topic and whatever commit, belongs to the order it names.
        found = [record for topic in app.engine.topics.values() for record in await read_topic(app, topic)]
        followed = [(correlation(record), trace_of(record)) for record in found]
        by_order = [pair for pair in followed if pair[0] in traces]
        assert len(by_order) > 5 * 8
        assert [pair for pair in by_order if traces[str(pair[0])] != pair[1]] == []
        await receiver.wait_for(lambda: receiver.named("process notification-commands")[9:], "every mail")
    for order_id, trace_id in traces.items():
        spans = [span for span in receiver.trace(trace_id) if "orders.correlation_id" in span.attributes]
        assert {span.attributes["orders.correlation_id"] for span in spans} == {order_id}
    placed = {(span.trace_id, span.span_id) for span in receiver.named("process order-commands order.place")}
    commits = [commit for commit in receiver.named("commit") if placed & set(commit.links)]
    assert set().union(*(commit.links for commit in commits)) >= placed
    assert any(len(placed & set(commit.links)) > 1 for commit in commits)  # they did share one
    assert not {commit.trace_id for commit in commits} & set(traces.values())
    assert {commit.parent_id for commit in commits} == {""}


def correlation(record: Record) -> str | None:
    """The correlation id of a record that is an envelope."""
    value = json.loads(record.value or b"{}")
    return value.get("metadata", {}).get("correlationId")  # type: ignore[no-any-return]


# ---- failures, retries, timers


async def test_a_record_that_fails_has_a_span_per_try_and_its_dead_letter_the_original_headers(
    tmp_path: Path, receiver: TraceReceiver
) -> None:
    tally, mine = Tally(), [("traceparent", TRACEPARENT.encode()), ("mine", b"1")]
    tally.poison = {b"jane@example.com"}
    async with running(make_settings("memory://", tmp_path, retry_count=1), [tally.service]) as app:
        await give(app, tally.source, "k", b"jane@example.com", mine)
        await at_rest(app)
        (letter,) = await dead_letters(app, tally.source)
        name = f"process {tally.source.name}"
        await receiver.wait_for(lambda: receiver.named(name)[1:], "both tries")
    assert list(letter.headers)[:2] == mine
    assert [name for name, _ in letter.headers].count("traceparent") == 1
    for tried in receiver.named(name):
        assert (tried.trace_id, tried.parent_id, tried.status) == (TRACE, PARENT, ERROR)
        assert tried.attributes["error.type"] == HandlerFailed.__name__
    assert [tried.attributes.get("orders.retry_count") for tried in receiver.named(name)] == [None, 1]
    assert "jane@example.com" not in str(receiver.spans)


async def test_a_timer_goes_on_with_the_trace_of_the_record_that_set_it(
    tmp_path: Path, receiver: TraceReceiver
) -> None:
    source, output = Topic(unique("wake-in"), "keys to be woken"), Topic(unique("wake-out"), "keys that were")
    service = Service(unique("wake"), topics=(output,))

    def set_timer(record: Record, work: UnitOfWork) -> str:
        work.schedule("wake", (record.key or b"").decode(), work.now_ms + 20)
        return "set"

    @service.on_timer("wake")
    def wake(timer: Timer, work: UnitOfWork) -> None:
        work.send_raw(output, timer.key.encode(), b"{}")

    service.agent("set-timers", source).on_record(set_timer)
    async with running(make_settings("memory://", tmp_path), [service]) as app:
        await give(app, source, "k", b"{}", [("traceparent", TRACEPARENT.encode())])
        await receiver.wait_for(lambda: receiver.named("process timer wake"), "the timer")
        await at_rest(app)
        (sent,) = await read_topic(app, output)
    (set_by,), (woken,) = receiver.named(f"process {source.name}"), receiver.named("process timer wake")
    assert (woken.trace_id, woken.parent_id) == (TRACE, set_by.span_id)
    assert dict(sent.headers)["traceparent"].decode() == f"00-{TRACE}-{woken.span_id}-01"


async def test_a_payment_whose_gateway_is_away_is_one_span_with_a_call_for_each_try(
    tmp_path: Path, receiver: TraceReceiver
) -> None:
    async with payment_server() as payments:
        settings = make_settings("memory://", tmp_path, saga="orchestration", payment_url=payments.url)
        async with running(settings) as app, client_of(app) as client:
            await client.put("/inventory/SKU-1", json={"quantity": 10})
            await payments.stop()
            await client.post("/orders", json=order(order_id="late"))
            await receiver.wait_for(lambda: receiver.named("POST /charges"), "a call in vain")
            await payments.start()
            await receiver.wait_for(lambda: receiver.named("process payment-commands"), "the payment")
    *failed, answered = receiver.named("POST /charges")
    (handled,) = receiver.named("process payment-commands")
    assert {call.attributes["error.type"] for call in failed} == {"Unavailable"}
    assert {call.parent_id for call in (*failed, answered)} == {handled.span_id}
    assert (answered.status, answered.attributes["http.response.status_code"], handled.status) == (0, 201, 0)


async def test_a_call_that_is_cut_off_by_the_end_of_its_worker_ends_its_spans(
    tmp_path: Path, receiver: TraceReceiver
) -> None:
    async with payment_server() as payments:
        payments.hold()
        settings = make_settings("memory://", tmp_path, saga="orchestration", payment_url=payments.url)
        async with running(settings) as app, client_of(app) as client:
            await client.put("/inventory/SKU-1", json={"quantity": 10})
            await client.post("/orders", json=order(order_id="held"))
            await wait_until(lambda: payments.open, "the gateway is called")
        (charge,), (handled,) = receiver.named("POST /charges"), receiver.named("process payment-commands")
    assert charge.parent_id == handled.span_id
    assert (charge.attributes["error.type"], handled.attributes["error.type"]) == ("CancelledError", "Abandoned")


async def test_a_dead_letter_that_is_retried_goes_on_with_its_trace(tmp_path: Path, receiver: TraceReceiver) -> None:
    tally = Tally()
    tally.poison = {b"v"}
    settings = make_settings("memory://", tmp_path, retry_count=0)
    services = [*create_app(settings).services, tally.service]
    async with running(settings, services) as app, client_of(app) as client:
        await give(app, tally.source, "k", b"v", [("traceparent", TRACEPARENT.encode())])
        await at_rest(app)
        (letter,) = await dead_letters(app, tally.source)
        tally.poison = set()
        asked = await client.post(f"/dead-letters/{dict(letter.headers)['dead_letter_id'].decode()}/retry")
        assert asked.status_code == 202, asked.text
        await at_rest(app)
        (sent,) = await read_topic(app, tally.output)
        await receiver.wait_for(lambda: receiver.named(f"process {tally.source.name}")[1:], "both tries")
    failed, worked = receiver.named(f"process {tally.source.name}")
    assert {(tried.trace_id, tried.parent_id) for tried in (failed, worked)} == {(TRACE, PARENT)}
    assert (failed.status, worked.status) == (ERROR, 0)
    assert trace_of(sent) == TRACE


async def test_what_is_not_sampled_is_not_exported_and_goes_on_not_sampled(
    tmp_path: Path, receiver: TraceReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_always_off")
    tally = Tally()
    async with running(make_settings("memory://", tmp_path), [tally.service]) as app:
        await give(app, tally.source, "k", b"v", [], [("traceparent", TRACEPARENT.encode())])
        await at_rest(app)
        first, second = await read_topic(app, tally.output)
    assert not int(dict(first.headers)["traceparent"][-2:], 16) & 1
    assert dict(second.headers)["traceparent"].startswith(f"00-{TRACE}-".encode())
    assert {span.trace_id for span in receiver.named(f"process {tally.source.name}")} == {TRACE}


# ---- several workers


def key_at(app: EngineApp, prefix: str) -> str:
    """A key whose partition this worker owns."""
    keys = map(f"{prefix}-{{}}".format, range(100))
    return next(key for key in keys if app.engine.partition_for(key.encode()) in app.engine.numbers)


async def test_a_trace_goes_on_across_workers(
    private_kafka_broker: KafkaBroker, tmp_path: Path, receiver: TraceReceiver
) -> None:
    settings = {"saga": "orchestration"}
    first, second = (new_worker(private_kafka_broker, tmp_path / str(n), None, **settings) for n in range(2))
    try:
        await first.start()
        await second.start()
        await settled([first, second])
        # An order of the first worker that asks for stock at the second.
        order_id, product = key_at(first, "across"), key_at(second, "SKU")
        async with client_of(second) as client:
            await client.put(f"/inventory/{product}", json={"quantity": 5})
            price = {"amount": "1.50", "currency": "USD"}
            items = [{"product_id": product, "quantity": 1, "price": price}]
            body = order("customer-1", order_id, items=items, email="jane@example.com")
            answer = await client.post("/orders?wait=20s", json=body, headers={"traceparent": TRACEPARENT})
            assert answer.status_code == 201, answer.text
            await receiver.wait_for(lambda: mail_of_confirmation(receiver, "write mail"), "the last mail")
            another = {"traceparent": f"00-{'a' * 32}-{PARENT}-01"}
            read = await client.get(f"/orders/{order_id}", headers=another)
            assert read.status_code == 200
            await receiver.wait_for(lambda: receiver.trace("a" * 32)[2:], "the forwarded request")
    finally:
        await first.stop()
        await second.stop()
    (mail,) = mail_of_confirmation(receiver, "write mail")
    line = receiver.ancestry(mail)[::-1]
    assert [span.says for span in line] == [*LINE[:-1], "write mail"]
    assert {span.trace_id for span in line} == {TRACE}
    one, other = first.engine.settings.public_url, second.engine.settings.public_url
    where = [span.resource["service.instance.id"] for span in line]
    assert where == [other, other, one, one, other, *[one] * 8]

    forwarded = receiver.trace("a" * 32)
    answered = next(s for s in forwarded if s.kind == SERVER and s.resource["service.instance.id"] == one)
    line = receiver.ancestry(answered)[::-1]
    assert [(span.name, span.kind) for span in line] == [
        ("GET /orders/{order_id}", SERVER),
        ("GET worker", CLIENT),
        ("GET /orders/{order_id}", SERVER),
    ]


# ---- off


async def test_without_the_variables_nothing_is_imported_bound_or_sent() -> None:
    program = """
import asyncio, pathlib, sys, tempfile
from engine.declare.unit_of_work import UnitOfWork
from tests.apps import at_rest, make_settings, read_topic, running
from tests.integration.web import client_of, order

async def main():
    settings = make_settings("memory://", pathlib.Path(tempfile.mkdtemp()), saga="orchestration")
    async with running(settings) as app, client_of(app) as client:
        await client.put("/inventory/SKU-1", json={"quantity": 10})
        headers = {"traceparent": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"}
        await client.post("/orders", json=order(order_id="o-1", email="a@example.com"), headers=headers)
        await at_rest(app)
        for topic in app.engine.topics.values():
            for record in await read_topic(app, topic):
                print(topic.name, *(name for name, _ in record.headers if name.startswith("trace")))
        agents = [agent for service in app.services for agent in service.agents.values()]
        accepting = [app.engine.accept(agent.topic.name) for agent in agents]
        bound = [agent.bind(accept) for agent, accept in zip(agents, accepting)]
        assert bound and all(app.engine.tracing.accept(accept) is accept for accept in accepting)
        assert all(app.engine.tracing.handler(handle, "a", "t") is handle for handle in bound)
        assert {type(task.work.current) for task in app.engine.tasks.values()} == {UnitOfWork}
    print("imported", *(name for name in sys.modules if name.startswith("opentelemetry")))

asyncio.run(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[-1] == "imported"
    assert f"{ORDER_EVENTS.name}" in lines
    assert f"{INVENTORY_COMMANDS.name}" in lines
    assert [line for line in lines[:-1] if " " in line] == []


def test_the_engine_without_tracing_binds_what_it_is_given() -> None:
    def handle(record: Record, work: UnitOfWork) -> str:
        return ""

    def accept(record: Record, number: int) -> Any:
        return None

    untraced = Untraced()
    assert untraced.handler(handle, "agent", "topic") is handle
    assert untraced.accept(accept) is accept
    assert untraced.unit_of_work is UnitOfWork
