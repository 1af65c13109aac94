"""What becomes of a record that cannot be processed: whether and when it is tried again, and what is told of it."""

import hashlib
import random
import re
import time
from datetime import UTC, datetime
from typing import Any, NamedTuple

import msgspec

from engine.declare.settings import Settings
from engine.failures.trace import format_trace
from engine.log.ports import Record
from engine.store.store import StoreError

ERROR_BYTES_MAX = 1024
TRACE_BYTES_MAX = 8192
NAME_CHARACTERS_MAX = 128
DEAD_LETTER_HEADERS = (
    "original_topic",
    "original_partition",
    "original_offset",
    "error_type",
    "error",
    "trace",
    "retry_count",
    "failed_at",
    "agent",
    "dead_letter_id",
)
_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|[0-9a-f]{8}-[0-9a-f-]{27}|\d+")


class InfrastructureError(Exception):
    """The record is not to blame (disk, broker, memory): the unit of work is dropped and the record tried again."""


INFRASTRUCTURE_ERRORS = (InfrastructureError, StoreError, MemoryError)


class RetryPolicy(NamedTuple):
    """How often and when a failed record is tried again; times are seconds."""

    retries: int
    backoff_s: float
    factor: float
    jitter: float

    @classmethod
    def of(cls, settings: Settings, topic: str) -> "RetryPolicy":
        """The policy for records of a topic."""
        own = settings.retry_topics.get(topic)
        general = settings.retry_count, settings.retry_backoff, settings.retry_factor, settings.retry_jitter
        if own is None:
            return cls(*general)
        special = own.count, own.backoff, own.factor, own.jitter
        return cls(*(s if s is not None else g for s, g in zip(special, general, strict=True)))  # type: ignore[arg-type]

    def pause_ms(self, retry_count: int) -> int:
        """How long to wait after `retry_count` retries: backoff x factor^n, up to `jitter` of it more or less."""
        return int(1000 * self.backoff_s * self.factor**retry_count * random.uniform(1 - self.jitter, 1 + self.jitter))


def is_retryable(error: BaseException) -> bool:
    """Whether trying again may help; errors say so themselves (see errors.py)."""
    return bool(getattr(error, "retryable", True))


def parks(error: BaseException) -> bool:
    """Whether later records of the aggregate have to wait for this one."""
    return bool(getattr(error, "parks", True))


class Failure(NamedTuple):
    """What is told of an error, within bounds."""

    error_type: str
    error: str
    trace: str
    fingerprint: str


def describe(agent: str, topic: str, error: BaseException) -> Failure:
    """Words for an error; the fingerprint is the same for what fails in the same way in the same place."""
    error_type, text = type(error).__name__[:NAME_CHARACTERS_MAX], _bounded(text_of(error), ERROR_BYTES_MAX)
    trace = _bounded(format_trace(error), TRACE_BYTES_MAX)
    place = place_of(error)
    same = "\n".join((agent, topic, error_type, _VARYING.sub("?", text), place))
    return Failure(error_type, text, trace, hashlib.sha256(same.encode()).hexdigest()[:16])


def dead_letter_headers(
    topic: str, partition: int, agent: str, record: Record, failure: Failure, retry_count: int, letter_id: str
) -> list[tuple[str, bytes]]:
    """The headers of a dead letter: the record's own, and what happened to it."""
    own = {
        "original_topic": topic,
        "original_partition": str(partition),
        "original_offset": str(record.offset),
        "error_type": failure.error_type,
        "error": failure.error,
        "trace": failure.trace,
        "retry_count": str(retry_count),
        "failed_at": datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "agent": agent,
        "dead_letter_id": letter_id,
    }
    original = [(name, value) for name, value in record.headers if name not in DEAD_LETTER_HEADERS]
    return original + [(name, text.encode()) for name, text in own.items()]


class Names(NamedTuple):
    """What a value that may be anything says of itself; None for what it does not say."""

    event_id: str | None = None
    event_type: str | None = None
    correlation_id: str | None = None
    aggregate_id: str | None = None


class _Head(msgspec.Struct, rename="camel"):
    """As much of an envelope as is looked at; everything may be anything."""

    event_id: Any = None
    event_type: Any = None
    metadata: Any = None
    aggregate_id: Any = None


_decode_head = msgspec.json.Decoder(_Head).decode


def names_in(value: bytes | None) -> Names:
    """Ids and type of an envelope, as far as they can be read."""
    try:
        head = _decode_head(value or b"")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Names()
    correlation_id = head.metadata.get("correlationId") if isinstance(head.metadata, dict) else None
    return Names(*map(_name, (head.event_id, head.event_type, correlation_id, head.aggregate_id)))


def _name(text: object) -> str | None:
    return text[:NAME_CHARACTERS_MAX] if isinstance(text, str) and text else None


def place_of(error: BaseException) -> str:
    """The function in which the error was raised."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace.tb_frame.f_code.co_qualname if trace is not None else ""


def text_of(error: BaseException) -> str:
    """The error's own words; whatever a handler raises must not keep its record from being buried."""
    try:
        return str(error)
    except BaseException:
        return f"{type(error).__name__}, whose text cannot be had"


def _bounded(text: str, bytes_max: int) -> str:
    """The end of `text` that fits: the end of a trace is where the cause is."""
    return text.encode(errors="backslashreplace")[-bytes_max:].decode(errors="ignore")
