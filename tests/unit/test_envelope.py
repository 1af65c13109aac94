"""The envelope's JSON is exactly the published one, and bad records give errors that say what to do."""

import json
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.declare.envelope import (
    NAMESPACE,
    Envelope,
    Message,
    Metadata,
    derived_id,
    encode_envelope,
    follow_up,
    format_timestamp,
    new_envelope,
)
from engine.declare.errors import InvalidPayload, RecordError, UndecodableRecord
from streams.events.money import Money
from streams.events.orders import CancelOrder, OrderItem, OrderPlaced, PlaceOrder, registry

PLACED_V1 = (
    b'{"eventId":"550e8400-e29b-41d4-a716-446655440000","eventType":"order.placed","aggregateId":"order-123",'
    b'"aggregateType":"Order","timestamp":"2026-11-23T10:00:00.000000Z","version":1,'
    b'"metadata":{"correlationId":"req-456","causationId":"cmd-789","userId":"user-123"},'
    b'"payload":{"orderId":"order-123","customerId":"customer-456",'
    b'"items":[{"productId":"SKU-1","quantity":2,"price":{"amount":"19.99","currency":"USD"}}],'
    b'"total":{"amount":"39.98","currency":"USD"},"country":"France","email":null}}'
)
PLACED = OrderPlaced(
    order_id="order-123",
    customer_id="customer-456",
    items=(OrderItem("SKU-1", 2, Money(Decimal("19.99"), "USD")),),
    total=Money(Decimal("39.98"), "USD"),
    country="France",
    email=None,
)
TEN_O_CLOCK = datetime(2026, 11, 23, 10, tzinfo=UTC)


def changed(*path: str | int, to: Any) -> bytes:
    """Return PLACED_V1 with the value at `path` replaced."""
    record = json.loads(PLACED_V1)
    target = record
    for step in path[:-1]:
        target = target[step]
    target[path[-1]] = to
    return json.dumps(record).encode()


def without(*path: str) -> bytes:
    """Return PLACED_V1 without the field at `path`."""
    record = json.loads(PLACED_V1)
    target = record
    for step in path[:-1]:
        target = target[step]
    del target[path[-1]]
    return json.dumps(record).encode()


def placed_at(timestamp: datetime) -> Envelope[OrderPlaced]:
    return new_envelope(PLACED, event_id="e", aggregate_id="order-123", timestamp=timestamp, metadata=Metadata())


def test_the_published_example_decodes_and_encodes_to_the_same_bytes() -> None:
    envelope = registry().decode(PLACED_V1)
    assert envelope == Envelope(
        event_id="550e8400-e29b-41d4-a716-446655440000",
        event_type="order.placed",
        aggregate_id="order-123",
        aggregate_type="Order",
        timestamp=TEN_O_CLOCK,
        version=1,
        metadata=Metadata("req-456", "cmd-789", "user-123"),
        payload=PLACED,
    )
    assert registry().encode(envelope) == PLACED_V1


def test_metadata_that_is_not_known_is_null_on_the_wire() -> None:
    record = json.loads(encode_envelope(placed_at(TEN_O_CLOCK)))
    assert record["metadata"] == {"correlationId": None, "causationId": None, "userId": None}


def test_only_events_carry_an_aggregate_version() -> None:
    command = new_envelope(CancelOrder("o"), event_id="c", aggregate_id="o", timestamp=TEN_O_CLOCK, metadata=Metadata())
    event = follow_up(command, PLACED, step="0", aggregate_id="o", aggregate_version=3)
    assert "aggregateVersion" not in json.loads(encode_envelope(command))
    assert list(json.loads(encode_envelope(event)).items())[-1] == ("aggregateVersion", 3)
    assert registry().decode(encode_envelope(event)).aggregate_version == 3


@pytest.mark.parametrize(
    ("timestamp", "text"),
    [
        (TEN_O_CLOCK, "2026-11-23T10:00:00.000000Z"),
        (TEN_O_CLOCK.replace(microsecond=500_000), "2026-11-23T10:00:00.500000Z"),
        (TEN_O_CLOCK.replace(microsecond=1), "2026-11-23T10:00:00.000001Z"),
        (datetime(2026, 11, 23, 12, tzinfo=timezone(timedelta(hours=2))), "2026-11-23T10:00:00.000000Z"),
        (datetime(1, 1, 1, tzinfo=UTC), "0001-01-01T00:00:00.000000Z"),
    ],
)
def test_a_timestamp_is_written_in_utc_with_six_digits(timestamp: datetime, text: str) -> None:
    assert json.loads(encode_envelope(placed_at(timestamp)))["timestamp"] == text
    assert format_timestamp(timestamp) == text


@pytest.mark.parametrize("text", ["2026-11-23T12:00:00+02:00", "2026-11-23T10:00:00Z", "2026-11-23T04:30:00.000-05:30"])
def test_a_timestamp_with_any_offset_is_read_as_utc(text: str) -> None:
    timestamp = registry().decode(changed("timestamp", to=text)).timestamp
    assert timestamp == TEN_O_CLOCK
    assert timestamp.tzinfo is UTC


@pytest.mark.parametrize(
    "text", ["2026-11-23T10:00:00", "2026-11-23", "noon", "", "0001-01-01T00:00:00+05:00", "9999-12-31T23:00:00-05:00"]
)
def test_a_timestamp_without_an_offset_or_a_date_is_refused(text: str) -> None:
    with pytest.raises(UndecodableRecord):
        registry().decode(changed("timestamp", to=text))


def test_a_naive_timestamp_is_not_encoded() -> None:
    naive = TEN_O_CLOCK.replace(tzinfo=None)
    with pytest.raises(ValueError, match="time zone"):
        encode_envelope(placed_at(naive))
    with pytest.raises(ValueError, match="time zone"):
        format_timestamp(naive)


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"not json",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"{}",
        PLACED_V1[:-1],
        PLACED_V1 + b" x",
        b'{"unknown":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        PLACED_V1.replace(b"order-123", b"\xff", 1),
        without("eventId"),
        without("aggregateId"),
        without("metadata"),
        without("payload"),
        without("version"),
        changed("eventId", to=""),
        changed("eventId", to="x" * 129),
        changed("aggregateId", to=""),
        changed("metadata", "userId", to=""),
        changed("version", to=0),
        changed("version", to="1"),
        changed("version", to=10**30),
        changed("aggregateVersion", to=0),
        changed("aggregateVersion", to=None),
    ],
)
def test_what_is_not_an_envelope_is_undecodable(value: bytes) -> None:
    with pytest.raises(UndecodableRecord, match="send one JSON object"):
        registry().decode(value)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        (changed("payload", to=None), ""),
        (changed("payload", to=[]), ""),
        (without("payload", "customerId"), "`customerId`"),
        (changed("payload", "customerId", to=""), "`$.payload.customerId`"),
        (changed("payload", "customerId", to="x" * 129), "`$.payload.customerId`"),
        (changed("payload", "items", 0, "quantity", to="2"), "`$.payload.items[0].quantity`"),
        (changed("payload", "items", 0, "quantity", to=2**63), "`$.payload.items[0].quantity`"),
        (changed("payload", "items", 0, "price", "amount", to=19.99), "`$.payload.items[0].price.amount`"),
        (changed("payload", "total", "amount", to=39.98), "`$.payload.total.amount`"),
        (changed("payload", "total", "amount", to=40), "`$.payload.total.amount`"),
        (changed("payload", "total", "amount", to=0), "`$.payload.total.amount`"),
        (changed("payload", "total", "amount", to=1), "`$.payload.total.amount`"),
        (changed("payload", "total", "amount", to=None), "`$.payload.total.amount`"),
        (changed("payload", "total", "amount", to="much"), "`$.payload.total.amount`"),
        (changed("payload", "total", "currency", to="Dollar"), "`$.payload.total.currency`"),
        (PLACED_V1.replace(b"customer-456", b"\xff"), ""),
    ],
)
def test_a_payload_that_does_not_fit_its_type_is_invalid_and_the_message_has_the_path(value: bytes, path: str) -> None:
    with pytest.raises(InvalidPayload) as error:
        registry().decode(value)
    assert path in str(error.value)
    assert "order.placed version 1" in str(error.value)


def test_an_amount_that_is_a_number_is_told_to_be_a_string() -> None:
    with pytest.raises(InvalidPayload, match="decimal string such as"):
        registry().decode(changed("payload", "total", "amount", to=39.98))


def place_command(**payload: Any) -> bytes:
    record = json.loads(PLACED_V1)
    record["eventType"] = PlaceOrder.event_type
    record["payload"].update(payload)
    return json.dumps(record).encode()


@pytest.mark.parametrize("amount", ["NaN", "sNaN", "Infinity", "-Infinity", "1E+5", "1e5", "0.0000001", 19.99, 20])
def test_a_command_with_an_amount_that_is_no_plain_decimal_is_invalid(amount: Any) -> None:
    money = {"amount": amount, "currency": "USD"}
    good, bad = ({"productId": "p", "quantity": 1, "price": price} for price in ({**money, "amount": "1"}, money))
    with pytest.raises(InvalidPayload, match=r"decimal string.*`\$\.payload\.total\.amount`"):
        registry().decode(place_command(total=money))
    with pytest.raises(InvalidPayload, match=r"decimal string.*`\$\.payload\.items\[1\]\.price\.amount`"):
        registry().decode(place_command(items=[good, bad]))


def test_a_command_that_names_another_aggregate_in_its_payload_is_invalid() -> None:
    with pytest.raises(InvalidPayload, match="order_id"):
        registry().decode(place_command(orderId="order-999"))


def test_unknown_fields_are_ignored() -> None:
    record = json.loads(PLACED_V1)
    for part in (record, record["payload"], record["payload"]["items"][0], record["metadata"]):
        part["fieldOfTheFuture"] = {"nested": [1.5]}
    assert registry().encode(registry().decode(json.dumps(record).encode())) == PLACED_V1


def test_optional_fields_may_be_left_out() -> None:
    payload = registry().decode(without("payload", "country")).payload
    assert payload.country is None
    assert registry().decode(place_command(total=None)).payload.total is None


@pytest.mark.parametrize("amount", ["19.90", "19.9", "0", "0.00", "-3.50", "12345678901234567890.123456"])
def test_an_amount_keeps_its_scale(amount: str) -> None:
    envelope = registry().decode(changed("payload", "total", "amount", to=amount))
    assert json.loads(registry().encode(envelope))["payload"]["total"]["amount"] == amount


def test_a_derived_id_is_the_uuid5_of_cause_and_step() -> None:
    for number in range(200):
        assert derived_id(f"cause-{number}", "step") == str(uuid.uuid5(NAMESPACE, f"cause-{number}:step"))


@given(cause=st.text(st.characters(exclude_categories=["Cs"])), step=st.text(st.characters(exclude_categories=["Cs"])))
@settings(deadline=None)
def test_any_derived_id_is_the_uuid5_of_cause_and_step(cause: str, step: str) -> None:
    assert derived_id(cause, step) == str(uuid.uuid5(NAMESPACE, f"{cause}:{step}"))


def test_what_follows_from_a_record_keeps_its_time_user_and_correlation() -> None:
    cause = registry().decode(PLACED_V1)
    command = follow_up(cause, CancelOrder("order-123"), step="cancel", aggregate_id="order-123")
    assert command.event_id == derived_id(cause.event_id, "cancel")
    assert command.timestamp == cause.timestamp
    assert command.metadata == Metadata("req-456", cause.event_id, "user-123")
    assert (command.event_type, command.aggregate_type, command.version) == ("order.cancel", "Order", 1)


def test_a_cause_without_a_correlation_starts_one() -> None:
    event = follow_up(placed_at(TEN_O_CLOCK), CancelOrder("o"), step="x", aggregate_id="o")
    assert event.metadata.correlation_id == "e"


ids = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=128)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
moneys = st.builds(
    Money, st.decimals(-(10**12), 10**12, places=2), st.text("ABCDEFGHIJKLMNOPQRSTUVWXYZ", min_size=3, max_size=3)
)
items = st.lists(st.builds(OrderItem, ids, st.integers(-(2**63), 2**63 - 1), moneys), max_size=4).map(tuple)
optional_texts = st.none() | texts
payloads: st.SearchStrategy[Message] = st.one_of(
    st.builds(OrderPlaced, ids, ids, items, moneys, optional_texts, optional_texts),
    st.builds(PlaceOrder, ids, ids, items, st.none() | moneys, optional_texts, optional_texts),
    st.builds(CancelOrder, ids, optional_texts),
)
timestamps = st.datetimes(timezones=st.just(UTC)) | st.datetimes(timezones=st.just(UTC)).map(
    lambda timestamp: timestamp.replace(microsecond=0)
)


@st.composite
def envelopes(draw: st.DrawFn) -> Envelope[Any]:
    payload: Any = draw(payloads)
    return new_envelope(
        payload,
        event_id=draw(ids),
        aggregate_id=payload.order_id,
        timestamp=draw(timestamps),
        metadata=draw(st.builds(Metadata, st.none() | ids, st.none() | ids, st.none() | ids)),
        aggregate_version=draw(st.just(msgspec.UNSET) | st.integers(1, 2**63 - 1)),
    )


@given(envelope=envelopes())
@settings(deadline=None)
def test_any_envelope_survives_the_round_trip(envelope: Envelope[Any]) -> None:
    value = registry().encode(envelope)
    assert registry().decode(value) == envelope
    assert json.loads(value)["timestamp"] == format_timestamp(envelope.timestamp)


@given(
    value=st.binary()
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(lambda document: json.dumps(document).encode())
)
@settings(deadline=None)
def test_any_bytes_give_a_record_error_and_no_other(value: bytes) -> None:
    with pytest.raises(RecordError):
        registry().decode(value)


@given(
    path=st.sampled_from([("payload",), ("metadata",), ("timestamp",), ("payload", "items"), ("payload", "total")]),
    to=st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(), st.lists),
)
@settings(deadline=None)
def test_a_damaged_record_decodes_or_gives_a_record_error(path: tuple[str, ...], to: Any) -> None:
    with suppress(RecordError):
        registry().decode(changed(*path, to=to))
