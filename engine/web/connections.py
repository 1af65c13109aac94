"""Connections of the web server: how many there may be, and how long one may keep it waiting.

All of this is paid per connection and once a second; a request costs nothing more than without it.
"""

from __future__ import annotations

import asyncio
import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, NamedTuple, cast

from aiohttp import web

from engine.web.answers import Problem, secure, unavailable

if TYPE_CHECKING:
    from aiohttp.web_request import BaseRequest

log = logging.getLogger(__name__)

FIRST_REQUEST_S = 15.0
BODY_S = 30.0
UNREAD_S = 30.0
IDLE_S = 75.0  # above the 60 s after which most proxies close an idle connection: they, not we, are to close it
SWEEP_S = 1.0
REFUSALS_MAX = 100
REFUSAL_S = 1.0
REFUSALS_LOGGED_EVERY_S = 10.0


class Patience(NamedTuple):
    """How long a client may take, in seconds.

    `first_request` until its first request has come, `body` for the body of a request, `unread` without taking
    anything of an answer.
    """

    first_request: float = FIRST_REQUEST_S
    body: float = BODY_S
    unread: float = UNREAD_S


class Connection(web.RequestHandler):
    """A connection as aiohttp serves it, which knows whether it is its client that it waits for."""

    __slots__ = ("_awaited", "_awaited_since", "_connections", "_unread_bytes")

    def __init__(self, connections: Connections, server: web.Server, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(server, loop=loop, **server._kwargs)
        self._connections = connections
        self._awaited: tuple[str, int] | None = None
        self._awaited_since = 0.0
        self._unread_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client has connected."""
        self._connections.open[self] = transport  # type: ignore[assignment]
        super().connection_made(transport)

    def connection_lost(self, exc: BaseException | None) -> None:
        """It is gone."""
        self._connections.open.pop(self, None)
        super().connection_lost(exc)

    def look_at(self, transport: asyncio.Transport, patience: Patience, now: float) -> None:
        """End what has kept us waiting for too long: the request with a 408, the connection if that does not help."""
        awaited = self._awaits(transport)
        if awaited != self._awaited:
            self._awaited, self._awaited_since = awaited, now
        if awaited is None or now - self._awaited_since < getattr(patience, awaited[0]):
            return
        request = self._current_request
        if awaited[0] == "body" and request is not None and request.content.exception() is None:
            self._lingering_time = 0.0  # the rest of the body is not waited for
            request.content.set_exception(Problem(408, f"the body did not come within {patience.body:g} s"))
            self._awaited_since = now  # a handler that does not read the body has once more the time
        else:
            transport.abort()  # not close, which would wait for the client to read what is left

    def _awaits(self, transport: asyncio.Transport) -> tuple[str, int] | None:
        """What the client owes us, a field of Patience, and for which request if it matters."""
        unread_bytes, before = transport.get_write_buffer_size(), self._unread_bytes
        self._unread_bytes = unread_bytes
        if unread_bytes and unread_bytes >= before > 0:
            return "unread", 0
        request = self._current_request
        if request is not None and not request.content.is_eof():
            return "body", self._request_count
        return ("first_request", 0) if self._request_count == 0 else None

    def handle_error(
        self,
        request: BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """Answer what is no HTTP, or whose headers are too large, with a problem as everything else."""
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            return super().handle_error(request, status, exc, message)
        log.debug("a request of %s cannot be read: %s", request.remote, message)
        if request.writer.output_size > 0:
            raise ConnectionError("a part of the answer is sent already")
        what = f"at most {self.max_headers} headers, and no line above {self.max_line_size} bytes"
        response = Problem(
            status, f"this is not a request that can be read: it must be HTTP/1.1 with {what}"
        ).response()
        secure(response)
        response.force_close()
        return response


class Connections:
    """What the web server listens with: makes a connection of every client, as long as there are not too many."""

    def __init__(self, server: web.Server, maximum: int, patience: Patience, setting: str) -> None:
        """`setting` is the variable that says how many there may be."""
        self.open: dict[Connection, asyncio.Transport] = {}
        self._refused: set[_Refusal] = set()
        self._server = server
        self._maximum = maximum
        self._setting = setting
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._refusal_logged_at = float("-inf")
        self._sweeping = self._loop.create_task(self._sweep(), name="web connections")

    def __call__(self) -> asyncio.Protocol:
        """The protocol of a client that connects."""
        if len(self.open) < self._maximum:
            return Connection(self, self._server, self._loop)
        self._log_refusal()
        return _Refusal(self._refused)

    def close(self) -> None:
        """Stop looking after connections; the web server closes them."""
        self._sweeping.cancel()

    async def _sweep(self) -> None:
        shortest = min(self._patience)
        while True:
            await asyncio.sleep(min(SWEEP_S, shortest / 4))
            now = self._loop.time()
            for connection, transport in list(self.open.items()):
                try:
                    connection.look_at(transport, self._patience, now)
                except Exception:
                    log.exception("a connection cannot be looked after, and is closed")
                    transport.abort()

    def _log_refusal(self) -> None:
        now = self._loop.time()
        if now - self._refusal_logged_at >= REFUSALS_LOGGED_EVERY_S:
            self._refusal_logged_at = now
            log.warning(
                "%d connections to the web view are open; others are refused (%s)",
                self._maximum,
                self._setting,
            )


class _Refusal(asyncio.Protocol):
    """Tells a client that it is one too many, whatever it wants.

    It hangs up when the client has, or soon: to close at once, with the request unread, would reset the connection
    before the client has read why.
    """

    def __init__(self, refused: set[_Refusal]) -> None:
        self._refused = refused

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Answer before anything is asked."""
        refused = cast(asyncio.Transport, transport)
        if len(self._refused) >= REFUSALS_MAX:
            refused.abort()
            return
        self._refused.add(self)
        refused.write(_REFUSAL)
        refused.write_eof()
        asyncio.get_running_loop().call_later(REFUSAL_S, refused.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        self._refused.discard(self)


def _as_bytes(problem: Problem) -> bytes:
    """A problem on the wire, as the last answer of a connection."""
    response = problem.response()
    secure(response)
    body = cast(bytes, response.body)
    headers = {**response.headers, "Content-Length": str(len(body)), "Connection": "close"}
    lines = [
        f"HTTP/1.1 {problem.status} {HTTPStatus(problem.status).phrase}",
        *(f"{k}: {v}" for k, v in headers.items()),
    ]
    return "\r\n".join((*lines, "", "")).encode() + body


_REFUSAL = _as_bytes(unavailable("this worker has as many connections as it can serve; try again"))
