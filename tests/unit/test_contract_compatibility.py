"""Rules of compatibility: each kind of change that breaks others is found, and what breaks nobody is let through."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.contracts import snapshot
from engine.contracts.compatibility import breaks, misfits
from engine.contracts.events import Contract, Kind, event_contracts
from engine.declare.envelope import Message
from engine.declare.registry import EventRegistry
from engine.declare.topic import Topic

TEXT = {"type": "string"}
NUMBER = {"type": "integer"}
NULL = {"type": "null"}
NAME = "thing.done/1"


def thing(required: str = "", **properties: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


def contract(schema: Mapping[str, Any], kind: Kind = "event", **changes: Any) -> dict[str, Contract]:
    values: dict[str, Any] = {"topics": {"things": "thing id"}, "aggregate_type": "Thing", "version": 1, **changes}
    return {NAME: Contract(kind, dict(schema), **values)}


def never(name: str, version: int) -> bool:
    return False


def found(old: Mapping[str, Any], new: Mapping[str, Any], kind: Kind) -> list[str]:
    return breaks(contract(old, kind), contract(new, kind), never)


# old, new, whether it breaks those who write commands, and those who read events
CHANGES = [
    pytest.param(thing("a", a=TEXT), thing("a", a=TEXT), False, False, id="nothing"),
    pytest.param(thing("a", a=TEXT), thing("a", a=TEXT, b=TEXT), False, False, id="a new optional field"),
    pytest.param(thing("a", a=TEXT), thing("a b", a=TEXT, b=TEXT), True, False, id="a new required field"),
    pytest.param(thing("a", a=TEXT, b=TEXT), thing("a", a=TEXT), True, True, id="an optional field is gone"),
    pytest.param(thing("a b", a=TEXT, b=TEXT), thing("a", a=TEXT), True, True, id="a required field is gone"),
    pytest.param(thing("a", a=TEXT), thing(a=TEXT), False, True, id="required becomes optional"),
    pytest.param(thing(a=TEXT), thing("a", a=TEXT), True, False, id="optional becomes required"),
    pytest.param(thing(a=TEXT), thing(a=NUMBER), True, True, id="another type"),
    pytest.param(thing(a=NUMBER), thing(a={"type": "number"}), False, True, id="integer becomes number"),
    pytest.param(thing(a=TEXT), thing(a={"anyOf": [TEXT, NULL]}), False, True, id="becomes nullable"),
    pytest.param(thing(a={"anyOf": [TEXT, NULL]}), thing(a=TEXT), True, False, id="is null no longer"),
    pytest.param(thing(a={"anyOf": [TEXT, NULL]}), thing(a={"anyOf": [NULL, TEXT]}), False, False, id="the order"),
    pytest.param(thing(a={"enum": ["x", "y"]}), thing(a={"enum": ["x"]}), True, False, id="a narrower enum"),
    pytest.param(thing(a={"enum": ["x"]}), thing(a={"enum": ["x", "y"]}), False, True, id="a wider enum"),
    pytest.param(thing(a=TEXT), thing(a={"enum": ["x"]}), True, False, id="text becomes an enum"),
    pytest.param(thing(a={"enum": ["x"]}), thing(a=TEXT), False, True, id="an enum becomes text"),
    pytest.param(thing(a={"const": 1}), thing(a={"const": 2}), True, True, id="another constant"),
    pytest.param(thing(a=TEXT), thing(a={**TEXT, "maxLength": 5}), True, False, id="a new upper bound"),
    pytest.param(thing(a={**TEXT, "maxLength": 5}), thing(a={**TEXT, "maxLength": 9}), False, True, id="higher bound"),
    pytest.param(thing(a={**NUMBER, "minimum": 0}), thing(a={**NUMBER, "minimum": 1}), True, False, id="lower bound"),
    pytest.param(thing(a=TEXT), thing(a={**TEXT, "pattern": "^x$"}), True, False, id="a new pattern"),
    pytest.param(thing(a={**TEXT, "format": "date-time"}), thing(a=TEXT), False, True, id="the format is gone"),
    pytest.param(
        thing(a={"type": "array", "items": thing("b", b=TEXT)}),
        thing(a={"type": "array", "items": thing("b c", b=TEXT, c=TEXT)}),
        True, False, id="a new required field of items",
    ),
    pytest.param(
        thing(a={"type": "array", "items": thing(b=TEXT)}), thing(a={"type": "array", "items": thing()}),
        True, True, id="a field of items is gone",
    ),
    pytest.param(
        thing(a={"anyOf": [thing(b=TEXT), NULL]}), thing(a={"anyOf": [NULL, thing()]}),
        True, True, id="a field of a nullable object is gone",
    ),
    pytest.param(
        thing(a={"type": "object", "additionalProperties": TEXT}),
        thing(a={"type": "object", "additionalProperties": NUMBER}), True, True, id="another type of a map's values",
    ),
    pytest.param(
        thing(a={"type": "array", "prefixItems": [TEXT, TEXT], "items": False}),
        thing(a={"type": "array", "prefixItems": [TEXT, NUMBER], "items": False}),
        True, True, id="another type of a pair's member",
    ),
    pytest.param(
        thing(a={"type": "array", "prefixItems": [TEXT], "items": False}),
        thing(a={"type": "array", "prefixItems": [TEXT, TEXT], "items": False}), True, True, id="a pair no longer",
    ),
    pytest.param(thing(a=thing(b=TEXT)), thing(a=thing(b=NUMBER)), True, True, id="another type deep inside"),
    pytest.param(thing(), {**thing(), "additionalProperties": False}, False, False, id="unknown fields refused"),
]  # fmt: skip


@pytest.mark.parametrize(("old", "new", "breaks_writers", "breaks_readers"), CHANGES)
def test_a_change_of_the_schema(
    old: Mapping[str, Any], new: Mapping[str, Any], breaks_writers: bool, breaks_readers: bool
) -> None:
    assert bool(found(old, new, "command")) is breaks_writers
    assert bool(found(old, new, "event")) is breaks_readers
    assert bool(found(old, new, "both")) is (breaks_writers or breaks_readers)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"topics": {}}, "is no longer in things"),
        ({"topics": {"other": "thing id"}}, "is no longer in things"),
        ({"topics": {"things": "owner id"}}, "its key in things was 'thing id' and is 'owner id'"),
        ({"aggregate_type": "Other"}, "its aggregate type was Thing and is Other"),
        ({"kind": "command"}, "was of the kind event and is of the kind command"),
        ({"headers": ()}, "has no longer the header ce_id"),
    ],
)
def test_a_change_around_the_schema(changes: dict[str, Any], words: str) -> None:
    before = contract(thing(), headers=("ce_id",))
    after = contract(**{"schema": thing(), "headers": ("ce_id",), **changes})
    assert breaks(before, after, never) == [f"{NAME}: {words}"]


def test_another_topic_and_another_header_break_nobody() -> None:
    after = contract(thing(), topics={"things": "thing id", "more": "owner id"}, headers=("more",))
    assert breaks(contract(thing()), after, never) == []


def test_a_type_that_is_gone_breaks_others() -> None:
    assert breaks(contract(thing()), {}, never) == [
        f"{NAME}: is gone, and no upcaster leads from it to a later version"
    ]
    assert breaks({"dead-letter": Contract("event", {})}, {}, never) == ["dead-letter: is gone"]


def test_an_old_version_is_kept_as_long_as_it_is_read() -> None:
    before, after = contract(thing(a=TEXT)), {"thing.done/2": Contract("event", thing(a=NUMBER), version=2)}
    assert breaks(before, after, lambda name, version: (name, version) == ("thing.done", 1)) == []
    assert set(snapshot.renew(before, after, lambda name, version: True)) == {"thing.done/1", "thing.done/2"}
    assert set(snapshot.renew(before, after, never)) == {"thing.done/2"}


def test_a_keyword_without_a_rule_is_not_taken_for_compatible() -> None:
    with pytest.raises(ValueError, match="multipleOf"):
        list(misfits({**NUMBER, "multipleOf": 2}, NUMBER))


# ---- the code against a snapshot


class Done(Message, frozen=True):
    event_type = "thing.done"
    schema_version = 1
    aggregate_type = "Thing"

    thing_id: str
    note: str | None = None


class DoneWithMore(Done, frozen=True):
    more: int = 0


class DoneOtherwise(Message, frozen=True):
    event_type = "thing.done"
    schema_version = 1
    aggregate_type = "Thing"

    thing_id: int


class DoneLater(DoneOtherwise, frozen=True):
    schema_version = 2


def contracts_of(message_class: type[Message]) -> tuple[dict[str, Contract], EventRegistry]:
    registry = EventRegistry([message_class])
    return event_contracts(registry, [Topic("things", "test", key="thing id", carries=(message_class,))]), registry


@pytest.mark.parametrize(
    ("message_class", "breaking", "differs"),
    [(Done, False, False), (DoneWithMore, False, True), (DoneOtherwise, True, True), (DoneLater, True, True)],
)
def test_the_code_is_held_against_a_snapshot(
    tmp_path: Path, message_class: type[Message], breaking: bool, differs: bool
) -> None:
    snapshot.write(tmp_path / "events.json", contracts_of(Done)[0])
    now, registry = contracts_of(message_class)
    difference = snapshot.compare(snapshot.read(tmp_path / "events.json"), now, registry.reads)
    assert (bool(difference.breaks), difference.differs) == (breaking, differs)


def test_a_new_version_with_an_upcaster_breaks_nobody() -> None:
    before, (now, registry) = contracts_of(Done)[0], contracts_of(DoneLater)
    registry.upcaster("thing.done", 1)(lambda payload: {"thingId": 1})
    assert snapshot.compare(before, now, registry.reads) == snapshot.Difference([], True)
    renewed = snapshot.renew(before, now, registry.reads)
    assert snapshot.compare(renewed, now, registry.reads) == snapshot.Difference([], False)


def test_a_snapshot_is_read_as_it_was_written(tmp_path: Path) -> None:
    contracts, _ = contracts_of(Done)
    snapshot.write(tmp_path / "deep" / "events.json", contracts)
    assert msgspec.to_builtins(snapshot.read(tmp_path / "deep" / "events.json")) == msgspec.to_builtins(contracts)
    assert snapshot.read(tmp_path / "nothing.json") == {}
