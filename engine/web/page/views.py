"""The routes of the page: itself, and the files it is made of."""

from __future__ import annotations

import asyncio
from typing import Final

from aiohttp import web

from engine.declare.operation import Undocumented
from engine.declare.service import Service
from engine.web.answers import ENGINE, Problem
from engine.web.page.files import INDEX, asset

service = Service("page")

CONTENT_SECURITY_POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self' data:",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
_HEADERS: Final = {
    "Cache-Control": "no-cache",  # kept, but asked for each time, so that a new release is seen at once
    "Vary": "Accept-Encoding",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
}


@service.route("GET", "/", Undocumented("for people"))
async def get_page(request: web.Request) -> web.StreamResponse:
    """The web page."""
    return await _answer(request, INDEX)


@service.route("GET", "/assets/{name}", Undocumented("files of the page, which change with it"))
async def get_asset(request: web.Request) -> web.StreamResponse:
    """A script, a style sheet or an image of the page."""
    return await _answer(request, request.match_info["name"])


async def _answer(request: web.Request, name: str) -> web.Response:
    try:
        found = await asyncio.to_thread(asset, request.app[ENGINE].settings.application, name)
    except KeyError as error:
        raise Problem(404, f"there is no {request.path}") from error
    headers = {**_HEADERS, "ETag": found.etag}
    if found.etag in request.headers.get("If-None-Match", ""):
        return web.Response(status=304, headers=headers)
    headers["Content-Type"] = found.content_type
    if "gzip" in request.headers.get("Accept-Encoding", ""):
        return web.Response(body=found.zipped, headers={**headers, "Content-Encoding": "gzip"})
    return web.Response(body=found.body, headers=headers)
