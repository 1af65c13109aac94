"""Examples of messages, encoded as they are on the wire."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from engine.contracts.schemas import Schema, Schemas, resolved
from engine.declare.envelope import Envelope, Message, Metadata, encode_envelope, new_envelope

_VALUES: Final[Mapping[str, Any]] = {"deadLetterId": "0-1764043200000000"}
_PYTHON_TYPES: Final[Mapping[str | None, type]] = {"string": str, "integer": int, "object": dict}
_TIME: Final = datetime(2026, 11, 23, 10, tzinfo=UTC)
_TIME_TEXT: Final = "2026-11-23T10:00:00Z"


def example(message_class: type[Message], values: Mapping[str, Any]) -> Envelope[Any] | None:
    """An envelope of this type with values that look real; the first field of a payload names its aggregate.

    `values` are those of fields by their names on the wire. None when the type takes only values
    that its schema says nothing of.
    """
    schemas = Schemas([message_class])
    known = {**_VALUES, **values}
    value = _value("", resolved(schemas.of(message_class), schemas.components), known)
    try:
        payload = msgspec.convert(value, message_class)
    except msgspec.ValidationError:
        return None
    aggregate_id = getattr(payload, payload.__struct_fields__[0]) if payload.__struct_fields__ else "aggregate-1"
    return new_envelope(
        payload,
        event_id="550e8400-e29b-41d4-a716-446655440000",
        aggregate_id=str(aggregate_id),
        timestamp=_TIME,
        metadata=Metadata("req-456", "cmd-789", "user-123"),
        aggregate_version=1 if message_class.aggregate_id_field is None else msgspec.UNSET,
    )


def on_the_wire(envelope: Envelope[Any]) -> Any:
    """The JSON of a record's value."""
    return msgspec.json.decode(encode_envelope(envelope))


def _value(name: str, schema: Schema, known: Mapping[str, Any]) -> Any:
    """A value that fits a schema without references, for a field of this name."""
    if "const" in schema:
        return schema["const"]
    if "enum" in schema:
        return schema["enum"][0]
    if "anyOf" in schema:
        return _value(name, next(found for found in schema["anyOf"] if found != {"type": "null"}), known)
    kind = schema.get("type")
    if name in known and isinstance(known[name], _PYTHON_TYPES.get(kind, ())):
        return known[name]
    if kind == "object":
        return {member: _value(member, found, known) for member, found in schema.get("properties", {}).items()}
    if kind == "array":
        return [_value("", found, known) for found in schema.get("prefixItems", [schema.get("items", {})])]
    if kind == "string":
        return _text(name, schema)
    if kind == "integer":
        return max(1, schema.get("minimum", 1))
    return {"number": 1.5, "boolean": True}.get(str(kind))


def _text(name: str, schema: Schema) -> str:
    if schema.get("format") == "date-time":
        return _TIME_TEXT
    if "pattern" in schema:  # the only one there is says what an amount looks like
        return "19.99"
    return f"{name or 'text'}-1"[: schema.get("maxLength")]
