"""Dead letters that people edit: the record to be tried instead, and what the difference is."""

from collections.abc import Iterator
from typing import Any

import msgspec

from engine.declare.envelope import derived_id

DIFFERENCE_CHARACTERS_MAX = 8000


class CannotEdit(ValueError):
    """The letter's record cannot be edited in this way; the message says why and what can be done."""


def edited_value(letter_id: str, original: bytes | None, payload: Any) -> bytes:
    """The letter's record with another payload: a new event id, which follows from letter and payload, caused by the
    original one. The same edit again changes nothing. Raises CannotEdit when the original is no envelope.
    """
    try:
        envelope = msgspec.json.decode(original or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise CannotEdit("the original is not JSON: give the whole record as `value`") from error
    if not isinstance(envelope, dict) or not isinstance(envelope.get("eventId"), str):
        raise CannotEdit("the original is not an event envelope: give the whole record as `value`")
    metadata = envelope.get("metadata")
    caused = {**(metadata if isinstance(metadata, dict) else {}), "causationId": envelope["eventId"]}
    caused.setdefault("correlationId", envelope["eventId"])
    new_id = derived_id(letter_id, f"edit:{msgspec.json.encode(payload, order='sorted').decode()}")
    if new_id == envelope["eventId"]:
        return original or b""
    return msgspec.json.encode({**envelope, "eventId": new_id, "metadata": caused, "payload": payload})


def difference(before: bytes | None, after: bytes) -> str:
    """What changed between two values, as JSON: `[{path, before, after}]`, within bounds; for people to read."""
    try:
        old, new = msgspec.json.decode(before or b""), msgspec.json.decode(after)
        changes = [{"path": path, "before": was, "after": now} for path, was, now in _changes("$", old, new)]
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return "the whole value was replaced"
    return msgspec.json.encode(changes).decode()[:DIFFERENCE_CHARACTERS_MAX]


def _changes(path: str, old: Any, new: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        for name in sorted({*old, *new}):
            yield from _changes(f"{path}.{name}", old.get(name), new.get(name))
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (was, now) in enumerate(zip(old, new, strict=True)):
            yield from _changes(f"{path}[{index}]", was, now)
    elif old != new:
        yield path, old, new
