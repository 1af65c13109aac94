"""An HTTP client of a running worker, whose errors are sentences for people."""

from __future__ import annotations

import asyncio
import io
import uuid
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import msgspec

from engine.cli.console import Failure
from engine.declare.application import Application
from engine.declare.settings import Settings

REQUEST_TIMEOUT_S = 40.0  # above the longest wait a worker can be asked for
CONNECT_TIMEOUT_S = 5.0
PROBE_TIMEOUT_S = 3.0
BUSY_RETRIES = 40
BUSY_PAUSE_S = 0.25


class NoWorker(Failure):
    """Nobody answers at the address."""


class Refused(Failure):
    """The worker's answer is a problem; `status` is that of HTTP, `problem` the problem+json."""

    def __init__(self, status: int, problem: Mapping[str, Any]) -> None:
        """Make a sentence of it."""
        detail = str(problem.get("detail") or problem.get("title") or "no reason given")
        fields = [f"{entry.get('field')}: {entry.get('message')}" for entry in problem.get("errors", ())]
        listed = "".join(f"\n  {line}" for line in fields if line != detail)
        super().__init__(f"the worker refused it ({status}): {detail}{listed}")
        self.status = status
        self.problem = problem


class WorkerClient:
    """Requests to one worker; use it in `async with`. Paths begin with a slash and are encoded already.

    Whatever follows from the requests of one client carries its `correlation_id`.
    """

    def __init__(
        self,
        url: str,
        api_token: str = "",
        headers: Mapping[str, str] | None = None,
        application: Application | None = None,
    ) -> None:
        self._by = f" with {application.command('worker')}" if application is not None else ""
        self.url = url.rstrip("/")
        self.correlation_id = str(uuid.uuid4())
        self._headers = {"X-Correlation-Id": self.correlation_id, **(headers or {})}
        if api_token:
            self._headers["Authorization"] = f"Bearer {api_token}"
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S)
        self._session = aiohttp.ClientSession(headers=self._headers, timeout=timeout)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            await self._session.close()

    async def get(self, path: str, **query: str | int) -> Any:
        """The JSON at a path; raises NoWorker, Refused."""
        _, found = await self._request("GET", path, query, None, "")
        return found

    async def find(self, path: str, **query: str | int) -> Any | None:
        """The JSON at a path, None when there is nothing (404)."""
        try:
            return await self.get(path, **query)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    async def post(self, path: str, body: Any, **query: str | int) -> tuple[int, Any]:
        """Post JSON that takes effect once however often it is sent; status and JSON of the answer."""
        return await self._request("POST", path, query, msgspec.json.encode(body), "application/json")

    async def delete(self, path: str) -> Any:
        """End what is at a path, which is the same however often it is asked for; the JSON of the answer."""
        _, found = await self._request("DELETE", path, {}, None, "")
        return found

    async def post_lines(self, path: str, lines: bytes) -> Any:
        """Post NDJSON of which each line takes effect once however often it is sent; the JSON of the answer."""
        _, found = await self._request("POST", path, {}, lines, "application/x-ndjson")
        return found

    async def is_up(self) -> bool:
        """Whether a worker answers, ready or not."""
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                await self.get("/healthz")
        except (NoWorker, TimeoutError):
            return False
        except Refused:
            return True
        return True

    async def _request(
        self, method: str, path: str, query: Mapping[str, str | int], body: bytes | None, content_type: str
    ) -> tuple[int, Any]:
        """One request; a 503, which passes by itself, is tried again for a while."""
        for attempt in range(BUSY_RETRIES + 1):
            status, found = await self._once(method, path, query, body, content_type)
            if status != 503 or path in ("/readyz", "/healthz") or attempt == BUSY_RETRIES:
                break
            await asyncio.sleep(BUSY_PAUSE_S)
        if status >= 400:
            raise Refused(status, found if isinstance(found, dict) else {})
        return status, found

    async def _once(
        self, method: str, path: str, query: Mapping[str, str | int], body: bytes | None, content_type: str
    ) -> tuple[int, Any]:
        if self._session is None:
            raise RuntimeError("use the client in `async with`")
        headers = {"Content-Type": content_type} if content_type else {}
        try:
            async with self._session.request(
                method, self.url + path, params=query, data=None if body is None else io.BytesIO(body), headers=headers
            ) as answer:
                raw = await answer.read()
                if "json" not in answer.content_type:
                    raise NoWorker(f"what answers at {self.url} is not a worker of this system; is --url right?")
                return answer.status, msgspec.json.decode(raw) if raw else None
        except aiohttp.InvalidURL as error:
            raise NoWorker(f"{self.url} is not an address; use one like http://127.0.0.1:6066") from error
        except (aiohttp.ClientError, OSError) as error:
            raise NoWorker(
                f"no worker answers at {self.url}. Start one{self._by}, or name another with --url."
            ) from error
        except TimeoutError as error:
            raise NoWorker(f"the worker at {self.url} did not answer within {REQUEST_TIMEOUT_S:.0f} s") from error
        except msgspec.DecodeError as error:
            raise NoWorker(f"what answers at {self.url} is not a worker of this system; is --url right?") from error


def client_for(settings: Settings, url: str | None, headers: Mapping[str, str] | None = None) -> WorkerClient:
    """The client of the worker at `url`, or of the one these settings describe; `headers` go with every request."""
    return WorkerClient(url or settings.local_url, settings.api_token.get_secret_value(), headers, settings.application)


def path_of(*parts: str) -> str:
    """A path of these parts, each encoded: `path_of("topics", "a/b")` is `/topics/a%2Fb`."""
    return "".join(f"/{quote(part, safe='')}" for part in parts)
