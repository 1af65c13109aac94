"""Spans of the OpenTelemetry SDK. Importing this imports the SDK, so only what runs with tracing on does."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from engine.declare.settings import Settings
from engine.observe.tracing.current import CURRENT, TRACEPARENT, TRACESTATE, Attributes, Kind, RecordHeaders, Value
from engine.observe.tracing.w3c import NO_PARENT, traceparent_of

CLOSE_TIMEOUT_S: Final = 2.0

_KINDS: Final = {
    "internal": SpanKind.INTERNAL,
    "server": SpanKind.SERVER,
    "client": SpanKind.CLIENT,
    "producer": SpanKind.PRODUCER,
    "consumer": SpanKind.CONSUMER,
}
_ERROR: Final = Status(StatusCode.ERROR)


class ActiveSpan:
    """A span that goes on, and its trace context in the forms in which it travels."""

    __slots__ = ("_headers", "_spans", "span")

    def __init__(self, spans: Spans, span: Span) -> None:
        self._spans = spans
        self._headers: RecordHeaders | None = None
        self.span = span

    @property
    def trace_id(self) -> str:
        """The id of the trace, 32 hexadecimal digits."""
        return f"{self.span.get_span_context().trace_id:032x}"

    def rename(self, name: str) -> None:
        """Give it another name."""
        self.span.update_name(name)

    def annotate(self, name: str, value: Value) -> None:
        """Add an attribute."""
        self.span.set_attribute(self._spans.names[name], value)

    def refuse(self, error_type: str) -> None:
        """Note that it came to nothing: a name of the kind of failure, never its words."""
        self.span.set_status(_ERROR)
        self.span.set_attribute("error.type", error_type)

    def child(self, name: str, kind: Kind, attributes: Attributes) -> _Current:
        """A part of it, which is the current span while the block lasts."""
        return _Current(self._spans.start(name, kind, attributes, set_span_in_context(self.span, NO_PARENT)))

    def carrier(self) -> dict[str, str]:
        """W3C trace context, as headers of an HTTP request."""
        context = self.span.get_span_context()
        carrier = {TRACEPARENT: traceparent_of(context)}
        if context.trace_state:
            carrier[TRACESTATE] = context.trace_state.to_header()
        return carrier

    def headers(self) -> RecordHeaders:
        """W3C trace context, as headers of a record."""
        if self._headers is None:
            self._headers = tuple([(name, value.encode()) for name, value in self.carrier().items()])
        return self._headers


class _Current:
    """Makes a span the current one while a block lasts, and ends it; what the block raises is noted by its type."""

    __slots__ = ("_span", "_token")

    def __init__(self, span: ActiveSpan) -> None:
        self._span = span

    def __enter__(self) -> ActiveSpan:
        self._token = CURRENT.set(self._span)
        return self._span

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: object) -> None:
        CURRENT.reset(self._token)
        if kind is not None:
            self._span.refuse(kind.__name__)
        self._span.span.end()


class _Names(dict[str, str]):
    """Full names of attributes: those of OpenTelemetry have a dot, and what has none is the application's own."""

    def __init__(self, application: str) -> None:
        super().__init__()
        self._application = application

    def __missing__(self, name: str) -> str:
        full = self[name] = name if "." in name else f"{self._application}.{name}"
        return full


class Spans:
    """Makes spans and sends them to the collector, in a thread of their own."""

    def __init__(self, settings: Settings) -> None:
        self.system = settings.transport
        self.group = settings.app_id
        self.names = _Names(settings.application.name)
        self._provider = TracerProvider(resource=_resource(settings), shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer: Tracer = self._provider.get_tracer(settings.application.distribution or settings.application.name)

    def start(
        self,
        name: str,
        kind: Kind,
        attributes: Attributes,
        parent: Context = NO_PARENT,
        links: Sequence[SpanContext] = (),
    ) -> ActiveSpan:
        """A span that begins now."""
        linked = [Link(context) for context in links]
        named = {self.names[attribute]: value for attribute, value in attributes.items()}
        return ActiveSpan(self, self._tracer.start_span(name, parent, _KINDS[kind], named, linked))

    @contextmanager
    def request(self, name: str, attributes: Attributes, parent: Context) -> Iterator[ActiveSpan]:
        """An HTTP request that is answered while the block lasts."""
        with _Current(self.start(name, "server", attributes, parent)) as span:
            yield span

    def flush(self) -> None:
        """Send what there is; returns when the collector has it."""
        self._provider.force_flush()

    def close(self) -> None:
        """Send what there is; a collector that does not answer is not waited for long."""
        closing = threading.Thread(target=self._provider.shutdown, name="last spans", daemon=True)
        closing.start()
        closing.join(CLOSE_TIMEOUT_S)


def _resource(settings: Settings) -> Resource:
    """Who makes the spans; what OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES say wins."""
    own = {"service.name": settings.app_id, "service.instance.id": settings.public_url}
    told = Resource.create().attributes
    named = "OTEL_SERVICE_NAME" in os.environ or "service.name" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "")
    if named:
        own["service.name"] = str(told["service.name"])
    if "service.instance.id" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", ""):
        own["service.instance.id"] = str(told["service.instance.id"])
    return Resource.create(own)
