"""The envelope around every event and command: its shape, its JSON, and ids and envelopes derived from a cause."""

import hashlib
import uuid
from datetime import UTC, datetime
from typing import Annotated, Any, ClassVar, Final, Generic, TypeVar

import msgspec

P = TypeVar("P")
M = TypeVar("M", bound="Message")

Id = Annotated[str, msgspec.Meta(min_length=1, max_length=128)]
"""An opaque id of 1 to 128 characters; type names obey the same limit."""

SchemaVersion = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
AggregateVersion = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]

Time = Annotated[datetime, msgspec.Meta(tz=True)]
"""A time with its zone, UTC when it is written here."""

TimeText = Annotated[str, msgspec.Meta(extra_json_schema={"format": "date-time"})]
"""A time as `format_timestamp` writes it."""

NAMESPACE: Final = uuid.UUID("6f1d3c52-0d0b-5b7e-9a64-3e1f0c8f7a21")
"""The namespace of every derived id. Changing it changes the id of everything that is replayed."""


# Structs here are immutable and hold no cycles, so the garbage collector need not track them (gc=False).
class Message(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Base of all payloads.

    A command sets `aggregate_id_field`, the field that must equal the envelope's aggregate id: commands come from any
    client. Events come from one writer, which took the id from the command, and are not checked again. Views of events
    leave `hidden_fields` out, such as an address.
    """

    event_type: ClassVar[str]
    schema_version: ClassVar[int]
    aggregate_type: ClassVar[str]
    aggregate_id_field: ClassVar[str | None] = None
    hidden_fields: ClassVar[tuple[str, ...]] = ()


class Metadata(msgspec.Struct, frozen=True, gc=False, rename="camel"):
    """Where a record comes from: the request it belongs to, the record that caused it, and the user."""

    correlation_id: Id | None = None
    causation_id: Id | None = None
    user_id: Id | None = None


class Envelope(msgspec.Struct, Generic[P], frozen=True, gc=False, rename="camel"):
    """One event or command as it travels.

    `timestamp` is business time, aware UTC. `version` is the schema version of `event_type`. `aggregate_version` is the
    event's position 1, 2, 3... in its aggregate's history and absent on commands.
    """

    event_id: Id
    event_type: Id
    aggregate_id: Id
    aggregate_type: Id
    timestamp: Time
    version: SchemaVersion
    metadata: Metadata
    payload: P
    aggregate_version: AggregateVersion | msgspec.UnsetType = msgspec.UNSET


_encode = msgspec.json.Encoder().encode
_namespace_hash = hashlib.sha1(NAMESPACE.bytes, usedforsecurity=False)
_VARIANT: Final = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}


def encode_envelope(envelope: Envelope[Any]) -> bytes:
    """Encode to JSON in the field order of the struct, the timestamp in UTC with 6 digits and Z.

    Raises ValueError when the timestamp is naive.
    """
    timestamp = envelope.timestamp
    if timestamp.tzinfo is not UTC:
        timestamp = _utc(timestamp)
        envelope = msgspec.structs.replace(envelope, timestamp=timestamp)
    value = _encode(envelope)
    if timestamp.microsecond:
        return value
    # msgspec leaves out a zero fraction. A quote inside a JSON string is escaped, so the first match is the timestamp.
    return value.replace(b'Z","version":', b'.000000Z","version":', 1)


def format_timestamp(timestamp: datetime) -> str:
    """Format as on the wire, `2026-11-23T10:00:00.000000Z`; raises ValueError when it is naive."""
    # Six times as fast as isoformat(), which asks the time zone for its offset through Python.
    text = _encode(_utc(timestamp))[1:-2].decode()
    return f"{text}Z" if timestamp.microsecond else f"{text}.000000Z"


def _utc(timestamp: datetime) -> datetime:
    if timestamp.tzinfo is UTC:
        return timestamp
    if timestamp.utcoffset() is None:
        raise ValueError("a timestamp needs a time zone; use datetime.now(UTC) or an offset")
    return timestamp.astimezone(UTC)


def derived_id(cause_id: str, step: str) -> str:
    """Return the id of what `step` makes of the record `cause_id`: `uuid5(NAMESPACE, "cause_id:step")`.

    The same cause and step give the same id for ever, so that a replay writes the same ids again.
    """
    # Four times as fast as uuid.uuid5: the namespace is hashed once and no UUID object is built (RFC 9562, 5.5).
    digest = _namespace_hash.copy()
    digest.update(f"{cause_id}:{step}".encode())
    text = digest.hexdigest()
    return f"{text[:8]}-{text[8:12]}-5{text[13:16]}-{_VARIANT[text[16]]}{text[17:20]}-{text[20:32]}"


def new_envelope(
    payload: M,
    *,
    event_id: str,
    aggregate_id: str,
    timestamp: datetime,
    metadata: Metadata,
    aggregate_version: int | msgspec.UnsetType = msgspec.UNSET,
) -> Envelope[M]:
    """Put a payload into an envelope; type, schema version and aggregate type come from its class."""
    return Envelope(
        event_id,
        payload.event_type,
        aggregate_id,
        payload.aggregate_type,
        timestamp,
        payload.schema_version,
        metadata,
        payload,
        aggregate_version,
    )


def follow_up(
    cause: Envelope[Any],
    payload: M,
    *,
    step: str,
    aggregate_id: str,
    aggregate_version: int | msgspec.UnsetType = msgspec.UNSET,
) -> Envelope[M]:
    """Put what follows from `cause` into an envelope: derived id, the cause's time and user, and the causal chain.

    `step` must differ between all that follows from one cause. A cause without a correlation id starts a correlation.
    """
    metadata = Metadata(
        cause.metadata.correlation_id or cause.event_id,
        cause.event_id,
        cause.metadata.user_id,
    )
    return new_envelope(
        payload,
        event_id=derived_id(cause.event_id, step),
        aggregate_id=aggregate_id,
        timestamp=cause.timestamp,
        metadata=metadata,
        aggregate_version=aggregate_version,
    )
