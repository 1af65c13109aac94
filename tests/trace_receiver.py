"""A collector for tests: a real OTLP/HTTP receiver that keeps the spans it is sent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.apps import wait_until
from tests.kafka import unused_port


class ReceivedSpan(NamedTuple):
    """A span as it came; ids in hexadecimal digits, `parent_id` is empty for the first of a trace."""

    trace_id: str
    span_id: str
    parent_id: str
    name: str
    kind: int
    attributes: dict[str, Any]
    links: list[tuple[str, str]]
    status: int
    resource: dict[str, Any]

    @property
    def says(self) -> str:
        """Name and event type."""
        return " ".join((self.name, *filter(None, [self.attributes.get("orders.event_type")])))


class TraceReceiver:
    """Keeps what it is sent in `spans`."""

    def __init__(self) -> None:
        self.port = unused_port()
        self.spans: list[ReceivedSpan] = []

    async def take(self, request: web.Request) -> web.Response:
        """Take an export request."""
        assert request.content_type == "application/x-protobuf"
        asked = ExportTraceServiceRequest.FromString(await request.read())
        for of_resource in asked.resource_spans:
            resource = _values(of_resource.resource.attributes)
            for of_scope in of_resource.scope_spans:
                self.spans += [_received(span, resource) for span in of_scope.spans]
        return web.Response(content_type="application/x-protobuf")

    def named(self, says: str) -> list[ReceivedSpan]:
        """The spans with this name, or name and event type."""
        return [span for span in self.spans if says in (span.name, span.says)]

    def trace(self, trace_id: str) -> list[ReceivedSpan]:
        """All spans of a trace."""
        return [span for span in self.spans if span.trace_id == trace_id]

    def ancestry(self, span: ReceivedSpan) -> list[ReceivedSpan]:
        """The span, its parent, and so on, up to one whose parent was not received."""
        by_id = {(found.trace_id, found.span_id): found for found in self.spans}
        line: list[ReceivedSpan] = []
        current: ReceivedSpan | None = span
        while current is not None:
            line.append(current)
            current = by_id.get((current.trace_id, current.parent_id))
        return line

    async def wait_for(self, found: Callable[[], Sequence[Any]], what: str) -> None:
        """Wait until spans are there."""
        await wait_until(lambda: bool(found()), f"{what} is exported; there are {[span.says for span in self.spans]}")


@asynccontextmanager
async def trace_receiver(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[TraceReceiver]:
    """Run a collector while the block lasts; applications that start meanwhile send their spans there."""
    receiver = TraceReceiver()
    application = web.Application(client_max_size=64 << 20)
    application.router.add_post("/v1/traces", receiver.take)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", receiver.port).start()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://127.0.0.1:{receiver.port}")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "20")
    try:
        yield receiver
    finally:
        await runner.cleanup()


def _received(span: Any, resource: dict[str, Any]) -> ReceivedSpan:
    return ReceivedSpan(
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        span.name,
        span.kind,
        _values(span.attributes),
        [(link.trace_id.hex(), link.span_id.hex()) for link in span.links],
        span.status.code,
        resource,
    )


def _values(attributes: Any) -> dict[str, Any]:
    return {pair.key: getattr(pair.value, pair.value.WhichOneof("value")) for pair in attributes}
