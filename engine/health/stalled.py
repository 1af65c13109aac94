"""Fetches that stand still: the next record has to wait in its lane, and there is no room for it.

What was fetched stays in memory, in its order; the log keeps the rest, as further fetches of the topic are kept away.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping

from engine.declare.handlers import RecordHandler
from engine.work.fetched import Fetched
from engine.work.intake import Intake
from engine.work.life import StaleBatch

log = logging.getLogger(__name__)


class StalledFetches:
    """What stands still in one life of a partition; it goes on when `room` is set."""

    def __init__(self, intake: Intake, room: asyncio.Event) -> None:
        self._intake = intake
        self._backlog = intake.backlog
        self._background = intake.work.life.background
        self._room = room
        self._fetches: dict[tuple[str, str], deque[tuple[Fetched, RecordHandler]]] = {}  # by agent and topic
        self._runner: asyncio.Task[None] | None = None

    def __contains__(self, source: tuple[str, str]) -> bool:
        """Whether fetches of this agent stand still."""
        return source in self._fetches

    def is_busy_with(self, topic: str) -> bool:
        """Whether fetches of this topic stand still."""
        return any(of == topic for _, of in self._fetches)

    def sources(self) -> Mapping[tuple[str, str], int]:
        """Agents and topics that stand still, with the number of fetches."""
        return {source: len(fetches) for source, fetches in self._fetches.items()}

    async def handle(self, source: tuple[str, str], fetched: Fetched, handle: RecordHandler) -> None:
        """Handle what is not handled yet of a fetch, and move past it; raises as `Intake.run_records` does.

        What finds no room to wait stands still, and with it all that comes behind it.
        """
        self._intake.work.life.check(fetched.epoch, fetched.topic)
        if source in self._fetches or not await self._intake.try_fetch(source, fetched, handle):
            self._add(source, fetched, handle)

    def _add(self, source: tuple[str, str], fetched: Fetched, handle: RecordHandler) -> None:
        self._fetches.setdefault(source, deque()).append((fetched, handle))
        self._backlog.hold(source[1])
        if self._runner is None:
            self._runner = self._background.run(self._run(), "stalled fetches")

    def cancel(self) -> None:
        """Forget everything; it comes again in the partition's next epoch."""
        if self._runner is not None:
            self._runner.cancel()
            self._runner = None
        self._fetches.clear()

    async def _run(self) -> None:
        try:
            while self._fetches:
                self._room.clear()
                for source in list(self._fetches):
                    await self._go_on(source)
                if self._fetches:
                    await self._room.wait()
            self._runner = None
        except StaleBatch as error:
            log.info("%s", error)

    async def _go_on(self, source: tuple[str, str]) -> None:
        """Handle what stands still, as far as there is room."""
        fetches = self._fetches[source]
        while fetches:
            fetched, handle = fetches[0]
            if not await self._intake.try_fetch(source, fetched, handle):
                return
            fetches.popleft()
            self._backlog.let_go(source[1])
        del self._fetches[source]
        self._backlog.handled_all(source)
