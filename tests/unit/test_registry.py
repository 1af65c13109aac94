"""The registry finds the class of a record, and old versions become the current one on every way in."""

import json
from typing import Any, ClassVar

import msgspec
import pytest

from domain.orders import evolve, replay
from engine.declare.envelope import Id, Message, Metadata, follow_up, new_envelope
from engine.declare.errors import InvalidPayload, UnknownEventType, UnknownEventVersion
from engine.declare.registry import EventRegistry
from streams.events.money import Money
from streams.events.orders import ORDER_TYPES, OrderConfirmed, OrderItem, OrderPlaced, SagaStyle, registry
from tests.unit.test_envelope import PLACED, PLACED_V1, TEN_O_CLOCK, changed


class OrderPlacedV3(Message, frozen=True, gc=False):
    """`order.placed` two versions later: version 2 added `channel`, version 3 split off `device`."""

    event_type: ClassVar[str] = "order.placed"
    schema_version: ClassVar[int] = 3
    aggregate_type: ClassVar[str] = "Order"

    order_id: Id
    customer_id: Id
    items: tuple[OrderItem, ...]
    total: Money
    channel: str
    device: str | None
    country: str | None = None
    email: str | None = None
    saga: SagaStyle | msgspec.UnsetType = msgspec.UNSET


def later_registry() -> EventRegistry:
    """Return the order types as they might be two versions of `order.placed` later."""
    later = EventRegistry([*(cls for cls in ORDER_TYPES if cls is not OrderPlaced), OrderPlacedV3])

    @later.upcaster("order.placed", from_version=1)
    def add_channel(payload: dict[str, Any]) -> dict[str, Any]:
        return {**payload, "channel": "web"}

    @later.upcaster("order.placed", from_version=2)
    def split_off_device(payload: dict[str, Any]) -> dict[str, Any]:
        channel, _, device = payload["channel"].partition("/")
        return {**payload, "channel": channel, "device": device or None}

    return later


def version_2_bytes(channel: str = "web") -> bytes:
    record = json.loads(PLACED_V1)
    record["version"] = 2
    record["payload"]["channel"] = channel
    return json.dumps(record).encode()


def version_3_bytes() -> bytes:
    record = json.loads(PLACED_V1)
    record["version"] = 3
    record["payload"] |= {"channel": "web", "device": None}
    return json.dumps(record).encode()


def test_versions_1_to_3_decode_to_equal_envelopes() -> None:
    later = later_registry()
    first, second, third = (later.decode(value) for value in (PLACED_V1, version_2_bytes(), version_3_bytes()))
    assert isinstance(first.payload, OrderPlacedV3)
    assert first == second == third
    assert first.version == 3


def test_versions_1_to_3_give_the_same_state_by_evolve_and_by_replay() -> None:
    later = later_registry()
    today = evolve(None, registry().decode(PLACED_V1))
    for value in (PLACED_V1, version_2_bytes(), version_3_bytes()):
        placed = later.decode(value)
        assert evolve(None, placed) == today
        confirmed = OrderConfirmed("order-123", "customer-456", PLACED.total)
        next_event = follow_up(placed, confirmed, step="confirm", aggregate_id="order-123", aggregate_version=2)
        history = [placed, later.decode(later.encode(next_event))]
        assert replay(history) == evolve(today, next_event)


def test_an_upcast_envelope_is_encoded_as_the_current_version_and_decodes_again() -> None:
    later = later_registry()
    for value in (PLACED_V1, version_2_bytes("app/phone"), version_3_bytes()):
        envelope = later.decode(value)
        again = later.encode(envelope)
        assert json.loads(again)["version"] == 3
        assert later.decode(again) == envelope


def test_each_upcaster_sees_the_payload_of_its_own_version() -> None:
    payload = later_registry().decode(version_2_bytes("app/phone")).payload
    assert (payload.channel, payload.device) == ("app", "phone")


def test_an_upcast_payload_is_checked_like_a_current_one() -> None:
    with pytest.raises(InvalidPayload, match=r"decimal string.*`\$\.payload\.total\.amount`"):
        later_registry().decode(changed("payload", "total", "amount", to=39.98))
    with pytest.raises(InvalidPayload):
        later_registry().decode(changed("payload", to=[]))
    with pytest.raises(InvalidPayload):
        later_registry().decode(changed("payload", "customerId", to=None))


def test_an_upcaster_that_fails_makes_the_payload_invalid() -> None:
    record = json.loads(version_2_bytes())
    record["payload"]["channel"] = None
    with pytest.raises(InvalidPayload, match="brought to version 3: AttributeError"):
        later_registry().decode(json.dumps(record).encode())


def test_a_version_newer_than_known_is_refused() -> None:
    with pytest.raises(UnknownEventVersion, match="version 3 is newer than version 1"):
        registry().decode(version_3_bytes())


def reader_of_later_versions() -> EventRegistry:
    """Today's order types, in the release before `order.placed` changes: it can read what the next ones write."""
    before = registry()
    before.downcaster("order.placed", from_version=3)(
        lambda payload: {**payload, "channel": "/".join(filter(None, (payload["channel"], payload["device"])))}
    )
    before.downcaster("order.placed", from_version=2)(
        lambda payload: {name: value for name, value in payload.items() if name != "channel"}
    )
    return before


@pytest.mark.parametrize("value", [version_2_bytes("app/phone"), version_3_bytes()])
def test_a_release_that_was_told_how_reads_what_the_next_one_writes_as_its_own_version(value: bytes) -> None:
    before = reader_of_later_versions()
    read = before.decode(value)
    assert read == before.decode(PLACED_V1)
    assert (type(read.payload), read.version) == (OrderPlaced, 1)
    assert json.loads(before.encode(read))["version"] == 1


def test_a_later_version_than_downcasters_lead_from_is_refused() -> None:
    gap = registry()
    gap.downcaster("order.placed", from_version=2)(lambda payload: payload)
    with pytest.raises(UnknownEventVersion, match="version 3 is newer than version 1"):
        gap.decode(version_3_bytes())


def test_a_downcaster_that_fails_makes_the_payload_invalid() -> None:
    record = json.loads(version_3_bytes())
    del record["payload"]["device"]
    with pytest.raises(InvalidPayload, match="brought to version 2: KeyError"):
        reader_of_later_versions().decode(json.dumps(record).encode())


def test_an_old_version_without_an_upcaster_is_refused() -> None:
    gap = EventRegistry([OrderPlacedV3])
    gap.upcaster("order.placed", from_version=1)(lambda payload: payload)
    with pytest.raises(UnknownEventVersion, match="no upcaster from version 2 to 3"):
        gap.decode(PLACED_V1)


def test_an_unknown_type_is_refused_by_name() -> None:
    with pytest.raises(UnknownEventType, match=r"'order\.teleported' is not registered"):
        registry().decode(changed("eventType", to="order.teleported"))


def test_a_type_belongs_to_one_class() -> None:
    with pytest.raises(ValueError, match=r"order\.placed is already registered as OrderPlaced"):
        registry().register(OrderPlacedV3)
    known = registry()
    assert known.register(OrderPlaced) is OrderPlaced


def test_a_version_has_one_upcaster() -> None:
    later = later_registry()
    with pytest.raises(ValueError, match="already has an upcaster from version 1"):
        later.upcaster("order.placed", from_version=1)(lambda payload: payload)


def test_a_registry_takes_over_the_classes_and_upcasters_of_another() -> None:
    combined = EventRegistry()
    combined.extend(later_registry())
    assert combined.decode(PLACED_V1) == later_registry().decode(PLACED_V1)
    with pytest.raises(ValueError, match="already registered"):
        combined.extend(registry())


def test_an_envelope_that_nobody_could_decode_is_not_encoded() -> None:
    envelope = new_envelope(PLACED, event_id="e", aggregate_id="order-123", timestamp=TEN_O_CLOCK, metadata=Metadata())
    for stranger in (EventRegistry(), later_registry()):
        with pytest.raises(TypeError, match=r"OrderPlaced is not registered as order\.placed version 1"):
            stranger.encode(envelope)
