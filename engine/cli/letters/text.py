"""Dead letters as text for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import msgspec

from engine.cli.console import columns

ERROR_CHARACTERS_MAX = 70

Json = Mapping[str, Any]
"""A letter or group as the web view shows it."""


def letter_table(letters: Sequence[Json]) -> list[str]:
    """A line for each letter, below a head."""
    lines = [("id", "state", "failed", "waiting", "topic", "key", "type", "error")]
    lines += [
        (
            letter["id"],
            letter["state"],
            seconds(letter["failed_at"]),
            str(letter["waiting"]),
            letter["topic"],
            letter["key"] or "-",
            letter["event_type"] or "-",
            error_of(letter),
        )
        for letter in letters
    ]
    return columns(lines, right=(3,))


def group_table(groups: Sequence[Json]) -> list[str]:
    """A line for each group, below a head."""
    lines = [("count", "waiting", "topic", "agent", "last failed", "fingerprint", "example", "error")]
    lines += [
        (
            str(group["count"]),
            str(group["waiting"]),
            group["topic"],
            group["agent"],
            seconds(group["last_failed_at"]),
            group["fingerprint"],
            group["example_id"],
            error_of(group),
        )
        for group in groups
    ]
    return columns(lines, right=(0, 1))


def letter_text(letter: Json) -> Iterator[str]:
    """Lines that tell everything about one letter."""
    yield f"dead letter {letter['id']}: {letter['state']}"
    yield from columns([(f"  {name}", text) for name, text in _facts(letter)])
    if letter["headers"]:
        yield from ("", "headers", *columns([(f"  {name}", text) for name, text in letter["headers"].items()]))
    yield from ("", "value", *_value(letter))
    if letter["actions"]:
        yield from ("", "what was done", *columns([_action(action) for action in letter["actions"]]))
    if letter["waiting_records"]:
        yield from ("", f"what waits behind it ({letter['waiting']})")
        yield from columns(
            [(f"  offset {record['offset']}", record["event_type"] or "-", record["event_id"] or "-")
             for record in letter["waiting_records"]]
        )  # fmt: skip
    if letter["recent_events"]:
        yield from ("", "what happened before")
        yield from columns(
            [(f"  {seconds(event['timestamp'])}", event["event_type"], _compact(event["payload"]))
             for event in letter["recent_events"]]
        )  # fmt: skip
    yield from ("", "trace", *(f"  {line}" for line in letter["trace"].splitlines()))


def seconds(time: str) -> str:
    """A time of the wire without its fraction of a second."""
    return f"{time[:19]}Z"


def error_of(found: Json) -> str:
    """Type and beginning of an error, on one line."""
    text = f"{found['error_type']}: {' '.join(found['error'].split())}"
    return text if len(text) <= ERROR_CHARACTERS_MAX else f"{text[: ERROR_CHARACTERS_MAX - 3]}..."


def _facts(letter: Json) -> Iterator[tuple[str, str]]:
    yield (
        "record",
        f"{letter['topic']}/{letter['partition']}@{letter['offset']}, produced {seconds(letter['timestamp'])}",
    )
    yield "key", letter["key"] or "-"
    yield "event", f"{letter['event_type'] or '-'} {letter['event_id'] or '-'}"
    yield "correlation", letter["correlation_id"] or "-"
    tries = f"{letter['retry_count']} retries, tried again by hand {letter['replays']} times"
    yield "failed", f"{seconds(letter['failed_at'])} in {letter['agent']}, after {tries}"
    yield "error", f"{letter['error_type']}: {letter['error']}"
    yield "alike", f"fingerprint {letter['fingerprint']}"
    yield "waiting", f"{letter['waiting']} records behind it"
    if letter["closed_at"] is not None:
        yield "closed", seconds(letter["closed_at"])
    elif letter["refusal"] is not None:
        yield "no retry", letter["refusal"]["detail"]


def _value(letter: Json) -> Iterator[str]:
    if not letter["complete"]:
        yield "  too large to be kept here: it is in the topic dead-letters"
    elif "value_base64" in letter:
        yield f"  no JSON; base64: {letter['value_base64']}"
    else:
        text = msgspec.json.format(msgspec.json.encode(letter["value"]), indent=2).decode()
        yield from (f"  {line}" for line in text.splitlines())


def _action(action: Json) -> tuple[str, str, str]:
    by = f"by {action['by']}: " if action["by"] else ""
    refused = action.get("refused")
    what = action["action"] if refused is None else f"{action['action']}, not carried out ({refused['detail']})"
    return f"  {seconds(action['at'])}", what, f"{by}{action['detail'] or ''}"


def _compact(payload: Any) -> str:
    text = msgspec.json.encode(payload).decode()
    return text if len(text) <= ERROR_CHARACTERS_MAX else f"{text[: ERROR_CHARACTERS_MAX - 3]}..."
