"""Handlers are found by the type of the decoded payload; what can never be processed says why."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from engine.declare import handlers as handlers_module
from engine.declare.agent import Agent
from engine.declare.envelope import Envelope
from engine.declare.errors import (
    InvalidBusinessTime,
    KeyMismatch,
    MissingKey,
    OversizeRecord,
    RecordError,
    UnknownEventType,
    WrongPartition,
)
from engine.declare.handlers import RecordHandler, SharedAcceptance, acceptance
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderPlaced, registry
from tests.unit.test_envelope import PLACED_V1
from tests.unit.test_unit_of_work import new_work

KEY = b"order-123"
BYTES_MAX = 2000
OPEN, STRICT = Topic("events", "any type"), Topic("commands", "known types", strict=True)
REKEYED = Topic("rekeyed", "another key", own_key=False)


class Book:
    """Handlers that note what they get."""

    def __init__(self) -> None:
        self.got: list[tuple[str, Any]] = []
        self.agents = [Agent[None](topic.name, topic) for topic in (OPEN, STRICT, REKEYED)]

        @self.on(OrderPlaced)
        def placed(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
            self.got.append(("placed", event.payload))

        @self.on(OrderConfirmed, OrderCancelled)
        def ended(event: Envelope[OrderConfirmed | OrderCancelled], work: UnitOfWork) -> None:
            self.got.append(("ended", event.payload))

    def on(self, *payloads: type) -> Callable[[Any], Any]:
        """Register a handler on the agents of all topics."""

        def register(handler: Any) -> Any:
            for agent in self.agents:
                agent.on(*payloads)(handler)
            return handler

        return register

    def bind(self, topic: Topic, partition_of_key: int = 0) -> RecordHandler:
        accept = acceptance(registry(), topic, BYTES_MAX, lambda key: partition_of_key)
        return next(agent for agent in self.agents if agent.topic is topic).bind(accept)


def record(value: bytes | None = PLACED_V1, key: bytes | None = KEY) -> Record:
    return Record(0, 1, key, value, ())


def confirmed() -> bytes:
    payload = {"orderId": "order-123", "customerId": "c", "total": {"amount": "1", "currency": "USD"}}
    return json.dumps(json.loads(PLACED_V1) | {"eventType": "order.confirmed", "payload": payload}).encode()


def test_each_type_finds_its_handler_and_names_itself() -> None:
    book = Book()
    handle = book.bind(OPEN)
    assert handle(record(), new_work()) == "order.placed"
    assert handle(record(confirmed()), new_work()) == "order.confirmed"
    assert [name for name, _ in book.got] == ["placed", "ended"]
    assert isinstance(book.got[0][1], OrderPlaced)


def test_a_type_has_one_handler_per_agent() -> None:
    with pytest.raises(ValueError, match="OrderPlaced has a handler already"):
        Book().on(OrderPlaced)(lambda event, work: None)


def test_a_type_without_a_handler_is_ignored_on_open_topics_and_refused_on_strict_ones() -> None:
    handle = Agent[None]("open", OPEN).bind(acceptance(registry(), OPEN, BYTES_MAX, lambda key: 0))
    assert handle(record(), new_work()) == "order.placed"
    with pytest.raises(UnknownEventType, match="does not belong into commands"):
        Agent[None]("strict", STRICT).bind(acceptance(registry(), STRICT, BYTES_MAX, lambda key: 0))(
            record(), new_work()
        )


@pytest.mark.parametrize(
    ("bad", "error"),
    [
        (record(key=None), MissingKey),
        (record(key=b""), MissingKey),
        (record(value=None), OversizeRecord),
        (record(value=b"x" * (BYTES_MAX + 1)), OversizeRecord),
        (record(key=b"order-124"), KeyMismatch),
        (record(key=b"\xff"), KeyMismatch),
    ],
)
def test_what_can_never_be_processed_says_why_before_any_handler_sees_it(bad: Record, error: type[RecordError]) -> None:
    book = Book()
    with pytest.raises(error):
        book.bind(OPEN)(bad, new_work())
    assert book.got == []


def test_a_value_of_exactly_the_limit_is_accepted() -> None:
    book = Book()
    book.bind(OPEN)(record(value=PLACED_V1 + b" " * (BYTES_MAX - len(PLACED_V1))), new_work())
    assert book.got


def test_a_topic_with_a_key_of_its_own_takes_any_key() -> None:
    book = Book()
    book.bind(REKEYED)(record(key=b"customer-456"), new_work())
    assert book.got


def test_the_partition_is_checked_where_any_client_writes() -> None:
    book = Book()
    with pytest.raises(WrongPartition, match="partition 3 of commands"):
        book.bind(STRICT, partition_of_key=3)(record(), new_work(number=0))
    book.bind(OPEN, partition_of_key=3)(record(), new_work(number=0))
    book.bind(STRICT, partition_of_key=2)(record(), new_work(number=2))
    assert len(book.got) == 2


@pytest.mark.parametrize("time", ["9999-12-31T23:59:59Z", "1899-12-31T23:59:59Z", "0001-01-01T00:00:00Z"])
def test_a_business_time_out_of_bounds_is_refused_where_any_client_writes(time: str) -> None:
    book = Book()
    odd = record(value=json.dumps(json.loads(PLACED_V1) | {"timestamp": time}).encode())
    with pytest.raises(InvalidBusinessTime, match="a time in the years 1900 to 2199"):
        book.bind(STRICT, partition_of_key=2)(odd, new_work(number=2))
    book.bind(OPEN)(odd, new_work())  # an earlier release may have written it
    assert len(book.got) == 1


def test_what_a_handler_raises_is_the_records_error() -> None:
    agent = Agent[None]("failing", OPEN)

    @agent.on(OrderPlaced)
    def fail(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError, match="no"):
        agent.bind(acceptance(registry(), OPEN, BYTES_MAX, lambda key: 0))(record(), new_work())


class Decodings:
    """An acceptance that counts its calls, shared by agents."""

    def __init__(self, agents: int) -> None:
        self.calls = 0
        self.accept = SharedAcceptance(self._count, agents)
        self._real = acceptance(registry(), OPEN, BYTES_MAX, lambda key: 0)

    def _count(self, record: Record, number: int) -> Envelope[Any]:
        self.calls += 1
        return self._real(record, number)


def test_agents_of_a_topic_share_what_was_decoded_once() -> None:
    decodings, same = Decodings(agents=3), record()
    messages = [decodings.accept(same, 0) for _ in range(3)]
    assert decodings.calls == 1
    assert messages[0] is messages[1] is messages[2]


def test_nothing_is_kept_when_all_agents_have_had_it() -> None:
    decodings, same = Decodings(agents=2), record()
    for _ in range(4):
        decodings.accept(same, 0)
    assert decodings.calls == 2


def test_the_same_offset_of_another_partition_or_another_life_is_another_record() -> None:
    decodings, first, again = Decodings(agents=2), record(), record(confirmed())
    assert decodings.accept(first, 0).event_type == "order.placed"
    assert decodings.accept(again, 1).event_type == "order.confirmed"
    assert decodings.accept(again, 0).event_type == "order.confirmed"
    assert decodings.accept(first, 0).event_type == "order.placed"


def test_what_cannot_be_decoded_fails_for_every_agent() -> None:
    decodings, bad = Decodings(agents=2), record(key=None)
    for _ in range(2):
        with pytest.raises(MissingKey):
            decodings.accept(bad, 0)


def test_messages_that_an_agent_never_asks_for_do_not_pile_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(handlers_module, "SHARED_MESSAGES_MAX", 5)
    decodings = Decodings(agents=2)
    for offset in range(20):
        decodings.accept(Record(offset, 1, KEY, PLACED_V1, ()), 0)
    assert len(decodings.accept._kept) <= 5
