"""The span that the running code belongs to, if any. Without tracing there is none, and nothing here does anything."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Final, Literal, Protocol

Kind = Literal["internal", "server", "client", "producer", "consumer"]
Value = str | int | bool
Attributes = Mapping[str, Value]
RecordHeaders = tuple[tuple[str, bytes], ...]

TRACEPARENT: Final = "traceparent"
TRACESTATE: Final = "tracestate"
HTTP_HEADERS: Final = (TRACEPARENT, TRACESTATE)


class CurrentSpan(Protocol):
    """A span that goes on."""

    @property
    def trace_id(self) -> str:
        """The id of the trace, 32 hexadecimal digits."""

    def annotate(self, name: str, value: Value) -> None:
        """Add an attribute; a name without a dot gets the name of the application before it."""

    def refuse(self, error_type: str) -> None:
        """Note that it came to nothing: a name of the kind of failure, never its words."""

    def child(self, name: str, kind: Kind, attributes: Attributes) -> AbstractContextManager[CurrentSpan]:
        """A part of it, which is the current span while the block lasts."""

    def carrier(self) -> Mapping[str, str]:
        """W3C trace context, as headers of an HTTP request."""

    def headers(self) -> RecordHeaders:
        """W3C trace context, as headers of a record."""


CURRENT: ContextVar[CurrentSpan | None] = ContextVar("current span", default=None)


def current_trace_id() -> str | None:
    """The trace that the running code belongs to."""
    span = CURRENT.get()
    return span.trace_id if span is not None else None


def annotate(name: str, value: Value) -> None:
    """Add an attribute to the current span, if there is one."""
    span = CURRENT.get()
    if span is not None:
        span.annotate(name, value)


@contextmanager
def calling(name: str, attributes: Attributes) -> Iterator[Mapping[str, str]]:
    """A call to the outside while the block lasts; gives the headers that let the other side go on with the trace."""
    span = CURRENT.get()
    if span is None:
        yield {}
        return
    with span.child(name, "client", attributes) as call:
        yield call.carrier()


def answered(status: int) -> None:
    """The HTTP status that came of the current call; as OpenTelemetry has it, 4xx and 5xx are failures of it."""
    span = CURRENT.get()
    if span is not None:
        span.annotate("http.response.status_code", status)
        if status >= 400:
            span.refuse(str(status))


@contextmanager
def publishing(topic: str, records: int) -> Iterator[RecordHeaders]:
    """Writing records while the block lasts; gives the headers they are to have."""
    span = CURRENT.get()
    if span is None:
        yield ()
        return
    attributes: dict[str, Value] = {
        "messaging.operation.type": "send",
        "messaging.operation.name": "send",
        "messaging.destination.name": topic,
    }
    if records != 1:
        attributes["messaging.batch.message_count"] = records
    with span.child(f"send {topic}", "producer", attributes) as send:
        yield send.headers()
