"""Routing: a request that needs a partition is answered by the worker that owns it, whoever is asked."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager

import aiohttp
from aiohttp import web
from yarl import URL

from engine.observe.tracing.current import HTTP_HEADERS, Attributes, answered, calling
from engine.partition.engine import Engine, PartitionNotHere
from engine.partition.task import PartitionTask
from engine.web.answers import ENGINE, TIMEOUT_MAX_S, invalid

CONNECT_TIMEOUT_S = 2.0
SILENCE_S = 5.0  # a stream has something to tell every second
STREAM_BUFFER_BYTES = 1 << 20  # as long as a line may be
_REQUEST_HEADERS = ("Authorization", "Content-Type", "Idempotency-Key", "X-Correlation-Id", "Accept", *HTTP_HEADERS)
_ANSWER_HEADERS = ("Content-Type", "Location", "Retry-After", "Allow", "WWW-Authenticate")
# A frozen worker holds its connections open: what it has not answered by then, it will not answer.
_TIMEOUT = aiohttp.ClientTimeout(total=TIMEOUT_MAX_S + 5, sock_connect=CONNECT_TIMEOUT_S)


class Router:
    """Finds the owner of a partition number and asks it; one HTTP session for the whole application."""

    def __init__(self, engine: Engine, owner_url: Callable[[int], str | None]) -> None:
        self._engine = engine
        self._owner_url = owner_url
        self.forwarded = engine.settings.application.header("Forwarded")
        """The header of what another worker has asked for."""
        self._session: aiohttp.ClientSession | None = None

    def here(self, number: int) -> PartitionTask | None:
        """The task of `number` if this worker owns it; raises PartitionNotHere while it is being restored."""
        if number in self._engine.tasks or number in self._engine.numbers:
            return self._engine.task(number)
        return None

    def owner(self, number: int) -> str:
        """Address of another worker that owns `number`; raises PartitionNotHere while there is none."""
        url = self._owner_url(number)
        if url is None or url.rstrip("/") == self._engine.settings.public_url.rstrip("/"):
            raise PartitionNotHere(f"partition {number} has no owner at the moment; try again")
        return url.rstrip("/")

    async def ask(
        self,
        number: int,
        path_and_query: str,
        timeout_s: float,
        headers: Mapping[str, str] | None = None,
        method: str = "GET",
    ) -> tuple[int, bytes]:
        """Request an (encoded) path of the owner of `number`; returns status and body.

        Raises PartitionNotHere when the owner cannot be reached.
        """
        timeout = aiohttp.ClientTimeout(total=timeout_s + CONNECT_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        url = URL(self.owner(number) + path_and_query, encoded=True)
        with _unreachable_is_not_here(number), _asking(method, url) as trace:
            headers = {**(headers or {}), **trace, self.forwarded: "1"}
            async with self._http().request(method, url, headers=headers, timeout=timeout) as answer:
                answered(answer.status)
                return answer.status, await answer.read()

    async def forward(self, request: web.Request, number: int) -> web.Response:
        """Let the owner of `number` answer the whole request; raises PartitionNotHere when it cannot.

        A request that was forwarded once is not forwarded again: two workers may disagree about the owner for a moment.
        """
        if self.forwarded in request.headers:
            raise PartitionNotHere(f"partition {number} is moving to another worker; try again")
        url = URL(self.owner(number) + request.raw_path, encoded=True)
        headers = {name: request.headers[name] for name in _REQUEST_HEADERS if name in request.headers}
        headers[self.forwarded] = "1"
        # Not can_read_body: that is over once a handler has read the body; `read` remembers it.
        body = await request.read() if request.body_exists else None
        with _unreachable_is_not_here(number), _asking(request.method, url) as trace:
            async with self._http().request(
                request.method, url, headers={**headers, **trace}, data=body, timeout=_TIMEOUT, allow_redirects=False
            ) as answer:
                answered(answer.status)
                kept = {name: answer.headers[name] for name in _ANSWER_HEADERS if name in answer.headers}
                return web.Response(status=answer.status, body=await answer.read(), headers=kept)

    def others(self) -> set[str]:
        """Addresses of the other workers that own anything."""
        urls = {self._owner_url(number) for number in range(self._engine.settings.partitions)}
        return {url.rstrip("/") for url in urls if url} - {self._engine.settings.public_url.rstrip("/")}

    @contextlib.asynccontextmanager
    async def listen(self, url: str) -> AsyncIterator[aiohttp.StreamReader]:
        """Give what another worker streams at an address; raises ClientError or OSError when it goes silent or away."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=SILENCE_S)
        headers = {self.forwarded: "1"}
        async with self._http().get(url, headers=headers, timeout=timeout, read_bufsize=STREAM_BUFFER_BYTES) as answer:
            answer.raise_for_status()
            yield answer.content

    def _http(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(auto_decompress=False)
        return self._session

    async def close(self) -> None:
        """Close the session; may be called twice."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()


ROUTER: web.AppKey[Router] = web.AppKey("router", Router)


@contextlib.contextmanager
def _unreachable_is_not_here(number: int) -> Iterator[None]:
    try:
        yield
    except (aiohttp.ClientError, OSError) as error:  # a timeout is an OSError
        raise PartitionNotHere(f"the worker that owns partition {number} cannot be reached; try again") from error


def _asking(method: str, url: URL) -> AbstractContextManager[Mapping[str, str]]:
    """Another worker is asked; gives the headers of the trace that it goes on with."""
    address: Attributes = {
        "http.request.method": method,
        "server.address": url.host or "",
        "server.port": url.port or 0,
    }
    return calling(f"{method} worker", address)


def install(application: web.Application, engine: Engine, owner_url: Callable[[int], str | None]) -> None:
    """Give an application its router, and let requests that wait go when the worker stops: here, or at another one."""
    router = application[ROUTER] = Router(engine, owner_url)

    async def stop_waiting(_: web.Application) -> None:
        for task in engine.tasks.values():
            task.waiters.close()
        await router.close()

    async def close(_: web.Application) -> None:
        await router.close()

    application.on_shutdown.append(stop_waiting)
    application.on_cleanup.append(close)


def task_here(request: web.Request, number: int) -> PartitionTask | None:
    """The task of `number` if this worker owns it, None when the request has to be forwarded."""
    return request.app[ROUTER].here(number)


def number_in_path(request: web.Request) -> int:
    """The `{number}` of a path, which may be that of no partition; raises a 422 problem when it is no number."""
    text = request.match_info["number"]
    if not (text.isascii() and text.isdecimal() and len(text) <= 9):
        raise invalid("number", "a partition's number, such as 0")
    return int(text)


def partition_of(request: web.Request, key: str) -> int:
    """The partition number of a key."""
    return request.app[ENGINE].partition_for(key.encode())
