"""Publishing commands: an envelope of each, its size checked, and the token that stands for where it is."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar

import msgspec
from aiohttp import web

from engine.declare.envelope import Envelope, Message, Metadata, derived_id, new_envelope
from engine.declare.operation import Parameter
from engine.declare.topic import Topic
from engine.log.ports import (
    Broker,
    Headers,
    Outgoing,
    Position,
    RecordsRefused,
    RecordsTooLarge,
    TransportError,
)
from engine.observe.tracing.current import annotate, publishing
from engine.positions.tokens import encode_token
from engine.web.answers import ENGINE, Problem, invalid, unavailable

C = TypeVar("C", bound=Message)

ID_CHARACTERS_MAX = 128
_ID_SCHEMA = {"type": "string", "minLength": 1, "maxLength": ID_CHARACTERS_MAX}
CORRELATION_ID = Parameter(
    "X-Correlation-Id", "what the request belongs to; goes along with everything that follows", _ID_SCHEMA, "header"
)
IDEMPOTENCY_KEY = Parameter(
    "Idempotency-Key", "the same key makes it the same command, which takes effect once", _ID_SCHEMA, "header"
)
PUBLISH_TIMEOUT_S = 10.0


def id_header(request: web.Request, name: str) -> str | None:
    """A header that holds an id, None without it; raises a 422 problem when it is none."""
    value = request.headers.get(name)
    if value is not None and not (1 <= len(value) <= ID_CHARACTERS_MAX and value.isprintable()):
        raise invalid(name, f"1 to {ID_CHARACTERS_MAX} printable characters")
    return value


def metadata(request: web.Request, user_id: str | None = None) -> Metadata:
    """Where the request's commands come from; without `X-Correlation-Id` the request starts a correlation."""
    correlation_id = id_header(request, CORRELATION_ID.name) or str(uuid.uuid4())
    annotate("correlation_id", correlation_id)
    return Metadata(correlation_id=correlation_id, user_id=user_id)


def envelope(command: C, command_id: str, occurred_at: datetime | None, origin: Metadata) -> Envelope[C]:
    """A command as it travels; business time is now unless given."""
    assert command.aggregate_id_field is not None, "a command names its aggregate"
    return new_envelope(
        command,
        event_id=command_id,
        aggregate_id=getattr(command, command.aggregate_id_field),
        timestamp=occurred_at or datetime.now(UTC),
        metadata=origin,
    )


def encode(request: web.Request, command: Envelope[Any]) -> bytes:
    """A command's record value; raises a 413 problem when no consumer would take it."""
    engine = request.app[ENGINE]
    value = engine.encode(command)
    if len(value) > engine.settings.record_bytes_max:
        raise Problem(413, f"the command has {len(value)} bytes, at most {engine.settings.record_bytes_max} are taken")
    return value


async def publish_command(
    request: web.Request, topic: Topic, command: Message, *, occurred_at: datetime | None = None
) -> str:
    """Write a command of a request, keyed by its aggregate's id, and return the token that stands for it.

    With an `Idempotency-Key` the command's id follows from the key, the type and the aggregate: the same request may be
    sent again. Raises a problem as `publish_record` does.
    """
    key = id_header(request, IDEMPOTENCY_KEY.name)
    made = envelope(command, str(uuid.uuid4()), occurred_at, metadata(request))
    if key is not None:
        made = msgspec.structs.replace(made, event_id=derived_id(made.aggregate_id, f"{command.event_type}:{key}"))
    position = await publish_record(request, topic, made.aggregate_id, encode(request, made))
    return token_of(request, [position])


async def publish_record(request: web.Request, topic: Topic, key: str, value: bytes, headers: Headers = ()) -> Position:
    """Write one record, durably.

    Raises a problem that says what is known: 413 or 503 when the log refused it, 503 when it may be there or not.
    """
    number = request.app[ENGINE].partition_for(key.encode())
    (position,) = await publish_to(request, topic, {number: [(key.encode(), value, headers)]})
    return position


async def publish_commands(request: web.Request, topic: Topic, commands: Sequence[tuple[str, bytes]]) -> list[Position]:
    """Write commands (aggregate id and value), each id's in the order given; where the last of each partition is."""
    engine = request.app[ENGINE]
    grouped: dict[int, list[Outgoing]] = {}
    for aggregate_id, value in commands:
        key = aggregate_id.encode()
        grouped.setdefault(engine.partition_for(key), []).append((key, value, ()))
    return await publish_to(request, topic, grouped)


async def publish_to(request: web.Request, topic: Topic, grouped: Mapping[int, Sequence[Outgoing]]) -> list[Position]:
    """Write records into these partitions, in the order given; where the last of each is.

    Raises as `publish_record` does.
    """
    if (reason := request.app[ENGINE].disk.refusal) is not None:
        raise Problem(507, f"{reason}: nothing is accepted until there is room again. Nothing of this request was.")
    with publishing(topic.name, sum(map(len, grouped.values()))) as trace:
        if trace:
            grouped = {number: _with_headers(records, trace) for number, records in grouped.items()}
        return await _write(request.app[ENGINE].broker, topic, grouped)


def token_of(request: web.Request, positions: Sequence[Position]) -> str:
    """The token that stands for published records."""
    return encode_token(positions, request.app[ENGINE].source_watch.topic_ids)


def _with_headers(records: Sequence[Outgoing], more: Headers) -> list[Outgoing]:
    return [(key, value, (*headers, *more)) for key, value, headers in records]


async def _write(broker: Broker, topic: Topic, grouped: Mapping[int, Sequence[Outgoing]]) -> list[Position]:
    publishing_all = (broker.publish(topic.name, number, records) for number, records in grouped.items())
    writing = asyncio.gather(*publishing_all, return_exceptions=True)
    # Not cancelled when it takes too long: the broker may have the records by now, which no cancellation undoes.
    await asyncio.wait([writing], timeout=PUBLISH_TIMEOUT_S)
    if not writing.done():
        raise _unknown(f"the broker has not answered for {PUBLISH_TIMEOUT_S:.0f} s")
    positions: list[Position] = []
    failures: list[TransportError] = []
    for result in writing.result():
        if isinstance(result, TransportError):
            failures.append(result)
        elif isinstance(result, BaseException):
            raise result
        else:
            positions.append(result[-1])
    if failures:
        raise _problem(failures, is_partly_written=bool(positions)) from failures[0]
    return positions


def _problem(failures: Sequence[TransportError], is_partly_written: bool) -> Problem:
    """The answer to a request whose records could not all be written."""
    reason = str(next((error for error in failures if not isinstance(error, RecordsRefused)), failures[0]))
    if is_partly_written:
        return _unknown(f"{reason}; other records of this request are written")
    if all(isinstance(error, RecordsTooLarge) for error in failures):
        return Problem(413, f"{reason}; nothing was accepted")
    if all(isinstance(error, RecordsRefused) for error in failures):
        return unavailable(f"{reason}; nothing was accepted: send it again when this is mended")
    return _unknown(reason)


def _unknown(reason: str) -> Problem:
    return unavailable(
        f"{reason}; nothing is known to be lost or accepted: send it again with the same Idempotency-Key"
    )
