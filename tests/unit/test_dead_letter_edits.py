"""Edited dead letters: another record with an id of its own, caused by the original one."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from engine.failures.rules import CannotEdit, difference, edited_value

ORIGINAL = msgspec.json.encode({"eventId": "e-1", "metadata": {"userId": "u"}, "payload": {"a": 1}, "more": [1]})


def edited(payload: Any, original: bytes | None = ORIGINAL) -> Any:
    return msgspec.json.decode(edited_value("3-17", original, payload))


def test_only_payload_id_and_cause_are_others() -> None:
    value = edited({"a": 2})
    assert value.pop("eventId") != "e-1"
    metadata = {"userId": "u", "causationId": "e-1", "correlationId": "e-1"}
    assert value == {"metadata": metadata, "payload": {"a": 2}, "more": [1]}


def test_the_id_follows_from_letter_and_payload() -> None:
    assert edited({"a": 2, "b": 3})["eventId"] == edited({"b": 3, "a": 2})["eventId"]
    assert edited({"a": 2})["eventId"] != edited({"a": 3})["eventId"]


def test_the_same_edit_again_changes_nothing() -> None:
    once = edited_value("3-17", ORIGINAL, {"a": 2})
    assert edited_value("3-17", once, {"a": 2}) == once
    assert edited({"a": 3}, once)["metadata"]["causationId"] == msgspec.json.decode(once)["eventId"]


@pytest.mark.parametrize("original", [None, b"", b"\xff", b"[]", b"{}", b'{"eventId": 1}', b"[" * 100_000])
def test_what_is_no_envelope_has_no_payload_to_change(original: bytes | None) -> None:
    with pytest.raises(CannotEdit, match="as `value`"):
        edited({}, original)


def test_the_difference_names_what_changed() -> None:
    after = msgspec.json.encode(
        {"eventId": "e-1", "metadata": {"userId": "u"}, "payload": {"a": 1, "b": 2}, "more": [3]}
    )
    assert msgspec.json.decode(difference(ORIGINAL, after)) == [
        {"path": "$.more[0]", "before": 1, "after": 3},
        {"path": "$.payload.b", "before": None, "after": 2},
    ]
    assert difference(b"\xff", after) == difference(None, after) == "the whole value was replaced"


def test_what_is_nested_too_deeply_to_compare_is_no_error() -> None:
    deep = [b'{"x":' * depth + end + b"}" * depth for depth, end in ((900, b"1"), (900, b"2"))]
    assert difference(deep[0], deep[1])
