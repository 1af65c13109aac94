"""Clients of Kafka that last as long as their worker: each is closed after a failure and made anew for the next use."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Generic, Protocol, TypeVar

from aiokafka.errors import KafkaError

from streams.transport.base import TransportError

log = logging.getLogger(__name__)

START_TIMEOUT_S = 25.0  # longer than one request takes at most
STOP_TIMEOUT_S = 5.0


class Client(Protocol):
    """What aiokafka's producers and consumers have in common."""

    async def start(self) -> None:
        """Connect."""

    async def stop(self) -> None:
        """Disconnect."""


C = TypeVar("C", bound=Client)


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
        self.last_failure: str | None = None
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

    def replace(self, client: C, error: Exception) -> None:
        """Give `client` to nobody any more; does nothing when it has been replaced already."""
        if client is not self._client:
            return
        self._client = None
        self.replaced += 1
        self.last_failure = describe(error)
        log.warning("the %s failed and is made anew: %s", self.name, self.last_failure)
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


def _look_at(starting: asyncio.Task[Any]) -> None:
    """All who waited may have gone: an error that nobody has looked at would be reported."""
    if not starting.cancelled():
        starting.exception()


async def stop(client: Client) -> None:
    """Disconnect a client that may have failed already: within STOP_TIMEOUT_S, and without raising."""
    try:
        async with asyncio.timeout(STOP_TIMEOUT_S):
            await client.stop()
    except (KafkaError, TimeoutError, OSError) as error:
        log.debug("a client could not be closed in order: %s", describe(error))
        with_connections: Any = getattr(client, "client", None) or getattr(client, "_client", None)
        if with_connections is not None:
            await with_connections.close()


def describe(error: BaseException) -> str:
    """An error with its type, which is all that many of aiokafka's errors say."""
    text, name = str(error), type(error).__name__
    if not text:
        return name
    return text if name in text else f"{name}: {text}"
