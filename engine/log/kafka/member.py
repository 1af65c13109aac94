"""Watches a worker's membership in the consumer group: aiokafka stops in silence at errors that nobody asks for."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaError

from engine.log.kafka.clients import BrokersInReach, ClientHealth, describe
from engine.log.ports import ClientState

log = logging.getLogger(__name__)

NAME: Final = "consumer of the group"
WATCH_INTERVAL_S: Final = 1.0


class GroupMember:
    """Looks every WATCH_INTERVAL_S at the client that is in the group, and has it replaced when it cannot go on."""

    def __init__(self, client: Callable[[], AIOKafkaConsumer], replace: Callable[[], Awaitable[None]]) -> None:
        """`client` gives the one of now; `replace` closes it and joins the group with another."""
        self._client = client
        self._replace = replace
        self._health = ClientHealth()
        self._replaced = 0
        self._brokers = BrokersInReach()
        self._watching: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to watch."""
        self._watching = asyncio.create_task(self._watch(), name=f"watch of the {NAME}")

    async def stop(self) -> None:
        """Watch no more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait([self._watching])

    def state(self) -> ClientState:
        """How the client does."""
        return ClientState(NAME, self._replaced, self._health.failing_s(), self._health.reason)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(WATCH_INTERVAL_S)
            try:
                await self._look()
            except Exception:  # a mistake in a look must not end the next ones
                log.exception("the watch of the %s failed", NAME)

    async def _look(self) -> None:
        client = self._client()
        refused, ended = _refusal(client), self._end(client)
        if (error := refused or ended) is None:
            self._health.worked()
            return
        self._health.failed(error)
        log.error("the %s cannot go on: %s", NAME, error)
        if ended is not None:
            self._replaced += 1
            self._brokers = BrokersInReach()
            await self._replace()

    def _end(self, client: AIOKafkaConsumer) -> str | None:
        """Why this client never goes on by itself; None while it may."""
        for task in (client._coordinator._coordination_task, client._fetcher._fetch_task, client._client._sync_task):
            if task is not None and task.done():
                failure = None if task.cancelled() else task.exception()
                return "a part of it has ended" if failure is None else describe(failure)
        return "none of the brokers that it knows answers" if self._brokers.are_lost(client._client) else None


def _refusal(client: AIOKafkaConsumer) -> str | None:
    """What the group's coordinator has refused; having been asked, aiokafka tries again."""
    try:
        client._coordinator.check_errors()
    except KafkaError as error:
        return describe(error)
    return None
