"""Spans of HTTP requests: one for each, whose parent is the trace context that the client gave."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from engine.observe.tracing.current import TRACEPARENT, TRACESTATE, Value
from engine.observe.tracing.sdk import Spans
from engine.observe.tracing.w3c import parent_in
from engine.web.answers import Around, Handler, route_of

UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds, by machines
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})


def trace_requests(spans: Spans) -> Around:
    """Around all requests and their problems. A span names the route, not the path: an id may be in it."""

    def around(handle: Handler) -> Handler:
        async def traced(request: web.Request) -> web.StreamResponse:
            if request.path in UNTRACED:
                return await handle(request)
            method = request.method if request.method in METHODS else "_OTHER"
            attributes: dict[str, Value] = {"http.request.method": method, "url.scheme": request.scheme}
            parent = parent_in(request.headers.getall(TRACEPARENT, ()), request.headers.getall(TRACESTATE, ()))
            with spans.request(method, attributes, parent) as span:
                response = await handle(request)
                if (route := route_of(request)) is not None:  # found by now, if there is one
                    span.rename(f"{method} {route}")
                    span.annotate("http.route", route)
                span.annotate("http.response.status_code", response.status)
                if response.status >= 500:
                    span.refuse(str(response.status))
                return response

        return traced

    return around
