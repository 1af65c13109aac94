"""Fetches that can wait a moment: projections handle them when their partition is quiet, or the interval is over.

On a busy partition every commit would otherwise carry the rows of every projection too: each table and topic in a
transaction costs the broker about as much as any other. Whoever waits for a projection (a read with a token) does not
wait for this.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from engine.declare.handlers import RecordHandler
from engine.health.stalled import StalledFetches
from engine.work.backlog import Backlog
from engine.work.fetched import Fetched
from engine.work.life import StaleBatch
from engine.work.open_work import OpenWork

log = logging.getLogger(__name__)

QUIET_S = 0.02
RECORDS_MAX = 20_000


class _Lingering(NamedTuple):
    source: tuple[str, str]  # agent and topic
    fetched: Fetched
    handle: RecordHandler


class LingeringFetches:
    """What lingers in one life of a partition, in the order it came."""

    def __init__(self, stalled: StalledFetches, work: OpenWork, backlog: Backlog, interval_s: float) -> None:
        self._stalled = stalled
        self._work = work
        self._backlog = backlog
        self._waiters = work.waiters
        self._interval_s = interval_s
        self._fetches: deque[_Lingering] = deque()
        self._handlers: dict[tuple[str, str], RecordHandler] = {}
        self._records = 0
        self._hurry = asyncio.Event()
        self._held: list[str] = []  # topics whose further fetches are kept away
        self._runner: asyncio.Task[None] | None = None
        work.waiters.on_wait = self._somebody_waits

    def is_busy_with(self, topic: str) -> bool:
        """Whether records of `topic` wait here."""
        return any(lingering.source[1] == topic for lingering in self._fetches)

    def add(self, source: tuple[str, str], fetched: Fetched, handle: RecordHandler) -> None:
        """Take a fetch; it is handled later, and soon when there are very many."""
        self._handlers[source] = handle
        self._fetches.append(_Lingering(source, fetched, handle))
        self._records += len(fetched.records)
        if self._records >= RECORDS_MAX:
            self._hurry.set()
            self._held.append(fetched.topic)
            self._backlog.hold(fetched.topic)
        self._somebody_waits(*source)
        if self._runner is None:
            self._runner = self._work.life.background.run(self._run(), "lingering fetches")

    def take(self, agents: Sequence[str], fetched: Fetched) -> bool:
        """Take a fetch past its agents, when all of them have let one of its topic linger before in this life.

        The way through Faust costs more than a projection does with the one or two records of a fetch.
        """
        sources = [(agent, fetched.topic) for agent in agents]
        if not all(source in self._handlers for source in sources):
            return False
        for source in sources:
            self.add(source, fetched, self._handlers[source])
        return True

    def cancel(self) -> None:
        """Forget everything; it comes again in the partition's next life."""
        if self._runner is not None:
            self._runner.cancel()
            self._runner = None
        self._backlog.is_draining = False
        self._hurry.clear()
        self._fetches.clear()
        self._held.clear()
        self._handlers.clear()
        self._records = 0

    def _somebody_waits(self, agent: str, topic: str) -> None:
        if self._waiters.waits_for(agent, topic):
            self._hurry.set()

    async def _run(self) -> None:
        try:
            await self._until_quiet()
            self._backlog.is_draining = True
            while self._fetches:
                source, fetched, handle = self._fetches[0]
                await self._stalled.handle(source, fetched, handle)
                self._fetches.popleft()
                self._records -= len(fetched.records)
                while self._held and self._records < RECORDS_MAX:
                    self._backlog.let_go(self._held.pop())
                if not any(lingering.source == source for lingering in self._fetches):
                    self._backlog.handled_all(source)
            self._hurry.clear()
            self._runner, self._backlog.is_draining = None, False
            self._work.commit_soon()
        except StaleBatch as error:
            log.info("%s", error)

    async def _until_quiet(self) -> None:
        """Wait until nothing else has come for a moment, somebody waits, or the interval is over."""
        ends_at = time.monotonic() + self._interval_s
        while not self._hurry.is_set():
            now = time.monotonic()
            due_at = min(ends_at, self._backlog.busy_at + QUIET_S)
            if now >= due_at:
                return
            try:
                async with asyncio.timeout(due_at - now):
                    await self._hurry.wait()
            except TimeoutError:
                continue
