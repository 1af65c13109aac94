"""Clients of Kafka that last as long as their worker: each is closed after a failure and made anew for the next use."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Generic, Protocol, TypeVar

from aiokafka.errors import KafkaError

from engine.log.ports import ClientState, TransportError

log = logging.getLogger(__name__)

ANSWER_S = 3.0  # what has no answer for longer is failing
FORGOTTEN_AFTER_S = 60.0
UNREACHABLE_MAX_S = 60.0
START_TIMEOUT_S = 25.0  # longer than one request takes at most
STOP_TIMEOUT_S = 5.0


class Client(Protocol):
    """What aiokafka's producers and consumers have in common."""

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Disconnect."""


C = TypeVar("C", bound=Client)


class ClientHealth:
    """Whether a client works, by what became of its last uses."""

    def __init__(self) -> None:
        self.reason = ""
        self._waiting: dict[object, float] = {}  # when uses began that have not ended
        self._failing: dict[str | None, tuple[float, float]] = {}  # when each scope first and last failed

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A use is under way; one that does not end is a failure as well."""
        use = object()
        self._waiting[use] = time.monotonic()
        try:
            yield
        finally:
            del self._waiting[use]

    def failed(self, reason: str, scope: str | None = None) -> None:
        """A use has failed: for everybody, or for what `scope` names only."""
        now = time.monotonic()
        self.reason = reason
        first, _ = self._failing.get(scope, (now, now))
        self._failing[scope] = first, now

    def worked(self, scope: str | None = None) -> None:
        """A use has succeeded."""
        self._failing.pop(None, None)
        self._failing.pop(scope, None)

    def failing_s(self) -> float:
        """For how many seconds it has failed, again and again, or not answered; 0 while it works."""
        now = time.monotonic()
        # What failed once, or has not been tried for a while, is no failure that lasts.
        self._failing = {at: (a, b) for at, (a, b) in self._failing.items() if now - b < FORGOTTEN_AFTER_S}
        unanswered_s = now - min(self._waiting.values(), default=now)
        failing_s = max((now - first for first, last in self._failing.values() if last > first), default=0.0)
        return max(failing_s, unanswered_s if unanswered_s > ANSWER_S else 0.0)


class BrokersInReach:
    """Whether a client of aiokafka still finds a broker: it knows those of its last answer, which may have moved since.

    It asks for new metadata whenever a connection breaks, and never asks the addresses of its settings again.
    """

    def __init__(self) -> None:
        self._lost_since: float | None = None

    def are_lost(self, client: Any) -> bool:
        """Whether none has answered for UNREACHABLE_MAX_S, in which aiokafka tries again by itself."""
        cluster, now = client.cluster, time.monotonic()
        if cluster._last_refresh_ms <= cluster._last_successful_refresh_ms:
            self._lost_since = None
        elif self._lost_since is None:
            self._lost_since = now
        return self._lost_since is not None and now - self._lost_since > UNREACHABLE_MAX_S


class ReplaceableClient(Generic[C]):
    """Keeps one client, and another one after that has failed.

    A use that is under way when another one fails goes on with the client it has, which is closed after its last use.
    """

    def __init__(
        self, name: str, make: Callable[[], C], explain: Callable[[Exception], Awaitable[TransportError]]
    ) -> None:
        """`make` gives a client that is not started; `explain` turns the failure of a start into what is raised."""
        self.name = name
        self.replaced = 0
        self.health = ClientHealth()
        self._make = make
        self._explain = explain
        self._client: C | None = None
        self._starting: asyncio.Task[C] | None = None
        self._is_closed = True
        self._uses: Counter[C] = Counter()
        self._closing: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Connect; raises TransportError with what to do."""
        self._is_closed = False
        await self._working()

    @asynccontextmanager
    async def use(self, timeout_s: float | None = None) -> AsyncIterator[C]:
        """Give a client that works; one that fails or takes over `timeout_s` seconds is not given again.

        Raises TransportError when none can be had; errors of the block pass.
        """
        client = await self._working()
        self._uses[client] += 1
        try:
            async with asyncio.timeout(timeout_s):
                yield client
        except (KafkaError, TransportError, TimeoutError) as error:
            self.replace(client, error)
            raise
        finally:
            self._uses[client] -= 1
            self._close_if_unused(client)

    def state(self) -> ClientState:
        """How it does."""
        failing_s = self.health.failing_s()
        reason = self.health.reason or ("no answer" if failing_s else "")
        return ClientState(self.name, self.replaced, failing_s, reason)

    def replace(self, client: C, error: Exception) -> None:
        """Give `client` to nobody any more; does nothing when it has been replaced already."""
        if client is not self._client:
            return
        self._client = None
        self.replaced += 1
        log.warning("the %s failed and is made anew: %s", self.name, describe(error))
        self._close_if_unused(client)

    async def close(self) -> None:
        """Disconnect everything; nothing can be used before the next start."""
        self._is_closed = True
        if self._starting is not None:
            self._starting.cancel()
            await asyncio.wait([self._starting])
        client, self._client = self._client, None
        if client is not None:
            await stop(client)
        if self._closing:
            await asyncio.wait(self._closing)

    async def _working(self) -> C:
        if self._is_closed:
            raise TransportError("Kafka is not connected yet")
        if self._client is not None:
            return self._client
        if self._starting is None or self._starting.done():
            self._starting = asyncio.create_task(self._start_one(), name=f"start of the {self.name}")
            self._starting.add_done_callback(_look_at)
        # One start for all who wait; it goes on when one of them is cancelled.
        starting = self._starting
        await asyncio.wait([starting])
        if starting.cancelled():
            raise TransportError(f"the {self.name} is being closed")
        return starting.result()

    async def _start_one(self) -> C:
        client = self._make()
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await client.start()
        except (KafkaError, TimeoutError) as error:
            await stop(client)
            raise await self._explain(error) from error
        except asyncio.CancelledError:
            await stop(client)
            raise
        self._client = client
        return client

    def _close_if_unused(self, client: C) -> None:
        if self._uses[client] or client is self._client:
            return
        del self._uses[client]
        closing = asyncio.create_task(stop(client), name=f"end of a {self.name}")
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


def _look_at(done: asyncio.Future[Any]) -> None:
    """All who waited may have gone: an error that nobody has looked at would be reported."""
    if not done.cancelled():
        done.exception()


async def stop(client: Client) -> None:
    """Disconnect a client that may have failed already: within STOP_TIMEOUT_S, and without raising."""
    stopping = asyncio.ensure_future(client.stop())
    done, _ = await asyncio.wait([stopping], timeout=STOP_TIMEOUT_S)
    stopping.add_done_callback(_look_at)
    if done and not stopping.cancelled() and stopping.exception() is None:
        return
    # It may wait for brokers that never answer, and not even hear that it is cancelled. That of a consumer gives up
    # before its connections while a fetch waits for its next try, whose end is raised as if all were cancelled.
    stopping.cancel()
    connections: Any = getattr(client, "client", None) or getattr(client, "_client", None)
    if connections is not None:
        closing = asyncio.ensure_future(connections.close())
        closing.add_done_callback(_look_at)
        await asyncio.wait([closing], timeout=STOP_TIMEOUT_S)


def describe(error: BaseException) -> str:
    """An error with its type, which is all that many of aiokafka's errors say."""
    text, name = str(error), type(error).__name__
    if not text:
        return name
    return text if name in text else f"{name}: {text}"
