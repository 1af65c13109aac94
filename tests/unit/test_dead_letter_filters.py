"""Filters of dead letters: ages, states, and which letters are meant."""

from __future__ import annotations

from typing import Any

import pytest

from engine.failures.dead_letters import DeadLetter
from engine.web.dead_letters.filters import STATES, InvalidFilter, letter_filter, parse_age, states_of

NOW_MS = 1_764_043_200_000


def letter(**changes: Any) -> DeadLetter:
    values: dict[str, Any] = {
        "agent": "decide-orders", "topic": "order-commands", "partition": 0, "offset": 0, "timestamp_ms": 0,
        "key": b"o-1", "value": None, "headers": (), "complete": True, "event_id": None, "event_type": "order.place",
        "correlation_id": None, "error_type": "HandlerFailed", "error": "No Such Thing", "trace": "",
        "fingerprint": "f", "failed_ms": NOW_MS - 60_000,
    }  # fmt: skip
    return DeadLetter(**values | changes)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("2h", 7200), ("3d", 259_200), ("0s", 0), ("366d", 366 * 86_400)]
)
def test_an_age_is_a_number_with_a_unit(text: str, seconds: int) -> None:
    assert parse_age(text) == seconds


@pytest.mark.parametrize("text", ["", "1", "s", "1 s", "-1s", "1.5h", "1w", "367d", "9999999999s", "\u0661s", "1s\n"])
def test_what_is_no_age_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="an age like 90s"):
        parse_age(text)


@pytest.mark.parametrize(
    ("values", "is_meant"),
    [
        ({}, True),
        ({"topic": "order-commands", "type": "order.place", "agent": "decide-orders", "key": "o-1"}, True),
        ({"topic": "order-events"}, False),
        ({"key": "o-"}, False),
        ({"error": "HandlerFailed"}, True),
        ({"error": "Handler"}, False),
        ({"error": "such thing"}, True),
        ({"older_than": "59s"}, True),
        ({"older_than": "60s"}, False),
        ({"newer_than": "61s"}, True),
        ({"newer_than": "60s"}, False),
        ({"fingerprint": "g"}, False),
        ({"something": "else"}, True),
    ],
)
def test_all_that_is_given_has_to_hold(values: dict[str, str], is_meant: bool) -> None:
    assert letter_filter(values, STATES["open"], NOW_MS).matches(letter()) is is_meant


def test_a_letter_without_a_key_or_type_is_not_meant_by_one() -> None:
    nameless = letter(key=None, event_type=None)
    assert letter_filter({}, STATES["open"], NOW_MS).matches(nameless)
    for name in ("key", "type"):
        assert not letter_filter({name: "x"}, STATES["open"], NOW_MS).matches(nameless)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("open", {"open", "retrying"}), ("retrying", {"retrying"}), ("resolved", {"resolved"}),
        ("discarded", {"discarded"}), ("all", {"open", "retrying", "resolved", "discarded"}),
    ],
)  # fmt: skip
def test_states_that_are_meant(name: str, meant: set[str]) -> None:
    wanted = letter_filter({}, states_of(name), NOW_MS)
    assert {state for state in STATES["all"] if wanted.matches(letter(state=state))} == meant


def test_what_cannot_be_used_names_its_field() -> None:
    with pytest.raises(InvalidFilter) as refused:
        letter_filter({"topic": ""}, STATES["open"], NOW_MS)
    assert refused.value.field == "topic"
    with pytest.raises(InvalidFilter) as refused:
        states_of("dead")
    assert refused.value.field == "state"
