"""From type string and schema version to payload class, with converters for the versions of the past and the next."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC
from typing import Any, TypeVar

import msgspec

from engine.declare.envelope import Envelope, Message, encode_envelope
from engine.declare.errors import InvalidPayload, UndecodableRecord, UnknownEventType, UnknownEventVersion

M = TypeVar("M", bound=Message)
Converter = Callable[[dict[str, Any]], dict[str, Any]]

# Current version, payload decoder, and the payload field that must equal the aggregate id. A plain tuple: unpacking a
# named one is slower, and this is done for every record.
_Current = tuple[int, Callable[[msgspec.Raw], Message], str | None]

_decode_header = msgspec.json.Decoder(Envelope[msgspec.Raw]).decode
_force_setattr = msgspec.structs.force_setattr
# Deep nesting ends in RecursionError; a timestamp of year 1 or 9999 can leave the calendar on its way to UTC.
_DECODE_ERRORS = (msgspec.DecodeError, UnicodeDecodeError, RecursionError, OverflowError)


class EventRegistry:
    """The messages a process understands; each type string has one class, which is its current version."""

    def __init__(self, message_classes: Iterable[type[Message]] = ()) -> None:
        """Register the given classes."""
        self._classes: dict[str, type[Message]] = {}
        self._current: dict[str, _Current] = {}
        self._converters: dict[tuple[str, int, int], Converter] = {}  # by type, from version and to version
        for message_class in message_classes:
            self.register(message_class)

    def register(self, message_class: type[M]) -> type[M]:
        """Register a class under its `event_type`; usable as a decorator. Raises ValueError if the type is taken."""
        event_type = message_class.event_type
        known = self._classes.setdefault(event_type, message_class)
        if known is not message_class:
            raise ValueError(f"{event_type} is already registered as {known.__name__}")
        self._current[event_type] = (
            message_class.schema_version,
            msgspec.json.Decoder(message_class).decode,
            message_class.aggregate_id_field,
        )
        return message_class

    @property
    def types(self) -> Sequence[str]:
        """Every type that is registered."""
        return tuple(self._current)

    def knows(self, event_type: str) -> bool:
        """Whether a class is registered for the type."""
        return event_type in self._current

    @property
    def classes(self) -> Mapping[str, type[Message]]:
        """The class of each type, which is its current version."""
        return self._classes

    def reads(self, event_type: str, version: int) -> bool:
        """Whether a payload of this version can be decoded: it is the current one, or converters lead there."""
        if event_type not in self._current:
            return False
        try:
            self._path(event_type, version, self._current[event_type][0])
        except UnknownEventVersion:
            return False
        return True

    def upcaster(self, event_type: str, from_version: int) -> Callable[[Converter], Converter]:
        """Register a function from the JSON payload of `from_version` to that of `from_version + 1`.

        Raises ValueError if there is one already.
        """
        return lambda function: self._add_converter(event_type, from_version, from_version + 1, function)

    def downcaster(self, event_type: str, from_version: int) -> Callable[[Converter], Converter]:
        """Register a function from the JSON payload of `from_version` to that of `from_version - 1`.

        For the release before the one that writes `from_version`: while both run, it can read what the next one writes.
        Raises ValueError if there is one already.
        """
        return lambda function: self._add_converter(event_type, from_version, from_version - 1, function)

    def extend(self, other: "EventRegistry") -> None:
        """Take over all that `other` knows; raises ValueError if both know a type or a converter differently."""
        for message_class in other._classes.values():
            self.register(message_class)
        for (event_type, from_version, to_version), function in other._converters.items():
            self._add_converter(event_type, from_version, to_version, function)

    def decode(self, value: bytes) -> Envelope[Any]:
        """Decode a record's value; the payload is of the registered class and `version` is that class's version.

        Raises UndecodableRecord, UnknownEventType, UnknownEventVersion or InvalidPayload.
        """
        # Two steps, because the class of the payload is known only after the header.
        try:
            envelope = _decode_header(value)
            if envelope.timestamp.tzinfo is not UTC:
                _force_setattr(envelope, "timestamp", envelope.timestamp.astimezone(UTC))
        except _DECODE_ERRORS as error:
            raise UndecodableRecord(
                f"not an event envelope: {error}; send one JSON object with eventId, eventType, aggregateId, "
                "aggregateType, timestamp, version, metadata and payload"
            ) from error
        current = self._current.get(envelope.event_type)
        if current is None:
            raise UnknownEventType(
                f"event type {envelope.event_type!r} is not registered; correct it, or deploy a version that knows it"
            )
        version, decode_payload, aggregate_id_field = current
        try:
            if envelope.version == version:
                payload = decode_payload(envelope.payload)
            else:
                payload = self._convert(envelope, version)
                _force_setattr(envelope, "version", version)
        except _DECODE_ERRORS as error:
            raise InvalidPayload(_explain(envelope, error)) from error
        if aggregate_id_field is not None and getattr(payload, aggregate_id_field) != envelope.aggregate_id:
            raise InvalidPayload(
                f"{envelope.event_type} for aggregate {envelope.aggregate_id!r} names another one in its payload "
                f"({aggregate_id_field}); send it with that one's id and key"
            )
        # Nobody else has seen this envelope yet, so it is still ours to complete; a copy would cost more.
        _force_setattr(envelope, "payload", payload)
        return envelope

    def encode(self, envelope: Envelope[Any]) -> bytes:
        """Encode a record's value.

        Raises TypeError when the envelope's type and version are not those of its payload's registered class, and
        ValueError when its timestamp is naive.
        """
        message_class = type(envelope.payload)
        known = self._classes.get(envelope.event_type)
        if known is not message_class or envelope.version != message_class.schema_version:
            raise TypeError(
                f"{message_class.__name__} is not registered as {envelope.event_type} version "
                f"{envelope.version}; nobody could decode it"
            )
        return encode_envelope(envelope)

    def _add_converter(self, event_type: str, from_version: int, to_version: int, function: Converter) -> Converter:
        known = self._converters.setdefault((event_type, from_version, to_version), function)
        if known is not function:
            kind = "an upcaster" if to_version > from_version else "a downcaster"
            raise ValueError(f"{event_type} already has {kind} from version {from_version}")
        return function

    def _convert(self, envelope: Envelope[msgspec.Raw], current_version: int) -> Message:
        event_type, version = envelope.event_type, envelope.version
        path = self._path(event_type, version, current_version)
        payload = msgspec.json.decode(envelope.payload, type=dict[str, Any])
        for to_version, converter in path:
            try:
                payload = converter(payload)
            # The payload has not been validated yet: a converter may stumble over it in any way.
            except Exception as error:
                raise InvalidPayload(
                    f"the payload of {event_type} version {version} could not be brought to version "
                    f"{to_version}: {type(error).__name__}: {error}"
                ) from error
        return msgspec.convert(payload, self._classes[event_type])

    def _path(self, event_type: str, version: int, current_version: int) -> list[tuple[int, Converter]]:
        """The converters from a version to the current one, each with the version it leads to."""
        path = []
        step = 1 if version < current_version else -1
        for from_version in range(version, current_version, step):
            converter = self._converters.get((event_type, from_version, from_version + step))
            if converter is None:
                raise UnknownEventVersion(_unknown_version(event_type, version, current_version, from_version))
            path.append((from_version + step, converter))
        return path


def _unknown_version(event_type: str, version: int, current_version: int, from_version: int) -> str:
    """Why a payload cannot be converted: no converter begins at `from_version`."""
    if version > current_version:
        return (
            f"{event_type} version {version} is newer than version {current_version}, the newest known here; "
            "deploy a version that knows it and retry"
        )
    return f"{event_type} has no upcaster from version {from_version} to {from_version + 1}; register one and retry"


def _explain(envelope: Envelope[Any], error: Exception) -> str:
    """Say what is wrong with a payload, and where, as a path from the envelope's root."""
    problem, separator, path = str(error).replace("`$", "`$.payload").partition(" - at ")
    if path.endswith(".amount`"):
        problem = 'an amount is a decimal string such as "19.99", neither a number nor with an exponent'
    return f"invalid payload of {envelope.event_type} version {envelope.version}: {problem}{separator}{path}"
