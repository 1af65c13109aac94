"""Spans of HTTP requests: one for each, whose parent is the trace context that the client gave."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Final

from aiohttp import web

from streams.tracing.current import TRACEPARENT, TRACESTATE, Value
from streams.tracing.sdk import Spans
from streams.tracing.w3c import parent_in

UNTRACED: Final = frozenset({"/healthz", "/readyz", "/metrics"})  # asked every few seconds, by machines
METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH"})

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def trace_requests(spans: Spans) -> Any:
    """The middleware around all others. A span names the route, not the path: there may be a customer's id in it."""

    @web.middleware
    async def middleware(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in UNTRACED:
            return await handler(request)
        method = request.method if request.method in METHODS else "_OTHER"
        attributes: dict[str, Value] = {"http.request.method": method, "url.scheme": request.scheme}
        resource = request.match_info.route.resource
        if resource is not None:
            attributes["http.route"] = resource.canonical
        name = f"{method} {resource.canonical}" if resource is not None else method
        parent = parent_in(request.headers.getall(TRACEPARENT, ()), request.headers.getall(TRACESTATE, ()))
        with spans.request(name, attributes, parent) as span:
            response = await handler(request)
            span.annotate("http.response.status_code", response.status)
            if response.status >= 500:
                span.refuse(str(response.status))
            return response

    return middleware
