"""What cannot be processed becomes a dead letter with everything needed to understand it; nothing waits behind it."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from engine.declare.envelope import Envelope, Metadata, new_envelope
from engine.declare.service import Service
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.partitioner import partition_for
from engine.log.ports import Outgoing, Record
from streams.events.money import Money
from streams.events.orders import ConfirmOrder, OrderConfirmed, OrderItem, PlaceOrder, registry
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    HandlerFailed,
    Seen,
    at_rest,
    broker_url,
    caught_up,
    dead_letters,
    make_settings,
    row,
    running,
    unique,
    wait_until,
)

PRICE = Money(Decimal("1.50"), "USD")
HEADERS = (("trace_id", b"t-1"), ("origin", b"\xff\x00"))
OWN_HEADERS = {
    "original_topic",
    "original_partition",
    "original_offset",
    "error_type",
    "error",
    "trace",
    "retry_count",
    "failed_at",
}


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


class Shop:
    """A service that notes placed orders; it fails for the customer `nobody`, after it has done its work."""

    def __init__(self) -> None:
        name = unique("shop")
        self.source = Topic(f"{name}-commands", "order commands", strict=True)
        self.events = Topic(f"{name}-events", "order events, among them some nobody here asked for")
        self.output = Topic(f"{name}-out", "orders seen")
        self.table: Table[str, Seen] = Table(f"{name}-orders", Seen)
        self.service = Service(name, tables=(self.table,), topics=(self.output,))
        self.service.agent("shop", self.source).on(PlaceOrder)(self.place)
        self.service.agent("listen", self.events).on(PlaceOrder)(self.place)

    def place(self, command: Envelope[PlaceOrder], work: UnitOfWork) -> None:
        seen = work.get(self.table, command.aggregate_id) or Seen()
        work.put(self.table, command.aggregate_id, Seen((*seen.values, command.event_id)))
        work.send(self.output, command.aggregate_id, command)
        if command.payload.customer_id == "nobody":
            raise HandlerFailed("nobody cannot order")


def place(order_id: str, event_id: str = "e-1", customer_id: str = "c-1", note: str | None = None) -> bytes:
    command = PlaceOrder(order_id, customer_id, (OrderItem("p", 1, PRICE),), email=note)
    return registry().encode(
        new_envelope(
            command,
            event_id=event_id,
            aggregate_id=order_id,
            timestamp=datetime(2026, 11, 23, 10, tzinfo=UTC),
            metadata=Metadata(),
        )
    )


def foreign(number: int, error: str, value: bytes | None, partitions: int) -> tuple[bytes, bytes | None]:
    """What parks its aggregate, for an aggregate of its own in the same partition."""
    key = neighbour(b"parked%d-" % number, partitions)
    found = json.loads(value or b"")
    found["aggregateId"] = found["payload"]["orderId"] = key.decode()
    return key, json.dumps(found).encode()


def changed(value: bytes, **fields: Any) -> bytes:
    return json.dumps(json.loads(value) | fields).encode()


def without(value: bytes, field: str) -> bytes:
    return json.dumps({name: found for name, found in json.loads(value).items() if name != field}).encode()


def neighbour(prefix: bytes, partitions: int) -> bytes:
    """A key that begins with `prefix` and is in the partition of order o-1."""
    wanted = partition_for(b"o-1", partitions)
    return next(key for n in range(1000) if partition_for(key := prefix + b"%d" % n, partitions) == wanted)


PARKING = {"UnknownEventType", "UnknownEventVersion", "HandlerFailed"}
GOOD = place("o-1")
BAD: dict[str, tuple[bytes | None, bytes | None, str]] = {
    "not JSON": (b"o-1", b"{not json", "UndecodableRecord"),
    "not UTF-8": (b"o-1", b"\xff\xfe\x00", "UndecodableRecord"),
    "an empty value": (b"o-1", b"", "UndecodableRecord"),
    "no value": (b"o-1", None, "OversizeRecord"),
    "a JSON number": (b"o-1", b"1", "UndecodableRecord"),
    "lacks a field": (b"o-1", without(GOOD, "eventId"), "UndecodableRecord"),
    "a payload that does not fit": (b"o-1", changed(GOOD, payload={"orderId": "o-1"}), "InvalidPayload"),
    "an unknown type": (b"o-1", changed(GOOD, eventType="order.teleport"), "UnknownEventType"),
    "an unknown version": (b"o-1", changed(GOOD, version=99), "UnknownEventVersion"),
    "no key": (None, GOOD, "MissingKey"),
    "an empty key": (b"", GOOD, "MissingKey"),
    "another aggregate's key": (b"other", GOOD, "KeyMismatch"),
    "a key that is no text": (b"\xff\xfe", GOOD, "KeyMismatch"),
    "two MiB": (b"o-1", place("o-1", note="x" * (2 << 20)), "OversizeRecord"),
    "a handler that fails": (b"o-1", place("o-1", "e-2", "nobody"), "HandlerFailed"),
    "a business time in the year 9999": (
        b"o-1",
        changed(GOOD, timestamp="9999-12-31T23:59:59Z"),
        "InvalidBusinessTime",
    ),
    "neither key nor value": (None, None, "MissingKey"),
}


async def test_each_bad_record_becomes_a_dead_letter_and_the_good_ones_around_it_are_handled(
    settings: Settings,
) -> None:
    shop = Shop()
    bad = [
        (neighbour(key, settings.partitions) if error == "KeyMismatch" and key else key, value, error)
        for key, value, error in BAD.values()
    ]
    for index, (_, value, error) in enumerate(bad):
        if error in PARKING:
            bad[index] = (*foreign(index, error, value, settings.partitions), error)
    async with running(settings, [shop.service]) as app:
        number = app.engine.partition_for(b"o-1")
        records: list[Outgoing] = []
        for index, (key, value, _) in enumerate(bad):
            records += [(b"o-1", place("o-1", f"good-{index}"), ()), (key, value, HEADERS)]
        broker = app.engine.broker
        positions = [
            position
            for record in records
            if record[:2] != (None, None)
            for position in await broker.publish(shop.source.name, number, [record])
        ]
        producer = broker.producer(99)  # not every client can write a record with neither key nor value
        await producer.start()
        await producer.begin()
        await producer.send({(shop.source.name, number): [(None, None, HEADERS)]})
        ends = await producer.commit()
        await producer.close()
        offsets = [position.offset for position in positions] + [ends[shop.source.name, number] - 1]
        await at_rest(app)

        seen = row(app, shop.table, "o-1")
        assert seen is not None
        assert seen.values == tuple(f"good-{index}" for index in range(len(bad)))
        letters = await dead_letters(app, shop.source)
        letters.sort(key=lambda letter: int(dict(letter.headers)["original_offset"]))  # retries come last
        last = bad.index((None, None, "MissingKey"))
        bad.append(bad.pop(last))
        assert [dict(letter.headers)["error_type"].decode() for letter in letters] == [e for _, _, e in bad]
        assert [(letter.key, letter.value) for letter in letters] == [(key, value) for key, value, _ in bad]
        found = [int(dict(letter.headers)["original_offset"]) for letter in letters]
        assert found == offsets[1::2][: len(bad) - 1] + offsets[-1:]
        for letter in letters:
            check_headers(letter, shop.source, number)
        assert app.engine.metrics.commit_failures == 0


def check_headers(letter: Record, topic: Topic, number: int) -> None:
    """Check the headers of a dead letter against the public interface."""
    assert tuple(letter.headers)[: len(HEADERS)] == HEADERS
    own = {name: value.decode() for name, value in letter.headers if (name, value) not in HEADERS}
    assert set(own) >= OWN_HEADERS
    assert (own["original_topic"], own["original_partition"]) == (topic.name, f"{number}")
    assert own["retry_count"] == ("3" if own["error_type"] == "HandlerFailed" else "0")
    assert own["error"]
    assert own["trace"].rstrip().splitlines()[-1].rpartition(":")[0].endswith(own["error_type"]) or own["trace"]
    assert datetime.fromisoformat(own["failed_at"]).utcoffset() is not None


async def test_a_record_on_another_partition_than_its_keys_is_a_dead_letter(settings: Settings) -> None:
    shop = Shop()
    async with running(settings, [shop.service]) as app:
        right = app.engine.partition_for(b"o-1")
        wrong = (right + 1) % settings.partitions
        for number in (wrong, right):
            await app.engine.broker.publish(shop.source.name, number, [(b"o-1", place("o-1", f"on {number}"), ())])
        await caught_up(app)
        assert row(app, shop.table, "o-1") == Seen((f"on {right}",))
        (letter,) = await dead_letters(app, shop.source)
        assert dict(letter.headers)["error_type"] == b"WrongPartition"
        assert dict(letter.headers)["original_partition"] == b"%d" % wrong


async def test_a_command_on_the_wrong_topic_is_a_dead_letter_but_an_event_nobody_handles_is_not(
    settings: Settings,
) -> None:
    shop = Shop()
    confirm = new_envelope(
        ConfirmOrder("o-1"), event_id="e-9", aggregate_id="o-1", timestamp=datetime.now(UTC), metadata=Metadata()
    )
    confirmed = new_envelope(
        OrderConfirmed("o-1", "c-1", PRICE),
        event_id="e-8",
        aggregate_id="o-1",
        timestamp=datetime.now(UTC),
        metadata=Metadata(),
        aggregate_version=2,
    )
    async with running(settings, [shop.service]) as app:
        number = app.engine.partition_for(b"o-1")
        broker = app.engine.broker
        await broker.publish(shop.source.name, number, [(b"o-1", registry().encode(confirm), ())])
        await broker.publish(shop.events.name, number, [(b"o-1", registry().encode(confirmed), ())])
        await caught_up(app)
        (letter,) = await dead_letters(app, shop.source)
        assert dict(letter.headers)["error_type"] == b"UnknownEventType"
        assert await dead_letters(app, shop.events) == []


async def test_a_record_as_large_as_the_log_takes_still_fits_with_its_dead_letter_headers(settings: Settings) -> None:
    shop = Shop()
    async with running(settings, [shop.service]) as app:
        number, broker = app.engine.partition_for(b"o-1"), app.engine.broker
        largest: Outgoing = (b"o-1", b"x" * ((4 << 20) - 200), ())  # 200: what the log itself needs for a record
        await broker.publish(shop.source.name, number, [largest, (b"o-1", GOOD, ())])
        await wait_until(lambda: app.engine.metrics.commits or app.engine.metrics.commit_failures, "a commit has ended")
        assert app.engine.metrics.commit_failures == 0
        await caught_up(app, "shop")
        (letter,) = await dead_letters(app, shop.source)
        assert (letter.key, letter.value) == largest[:2]
        assert row(app, shop.table, "o-1") == Seen(("e-1",))


async def test_headers_of_the_sender_cannot_pass_for_ours(settings: Settings) -> None:
    shop = Shop()
    async with running(settings, [shop.service]) as app:
        number, broker = app.engine.partition_for(b"o-1"), app.engine.broker
        forged = (("error_type", b"Forged"), ("retry_count", b"77"), ("kept", b"yes"))
        await broker.publish(shop.source.name, number, [(b"o-1", b"{", forged)])
        await caught_up(app, "shop")
        (letter,) = await dead_letters(app, shop.source)
        assert [value for name, value in letter.headers if name == "error_type"] == [b"UndecodableRecord"]
        assert [value for name, value in letter.headers if name == "retry_count"] == [b"0"]
        assert dict(letter.headers)["kept"] == b"yes"
