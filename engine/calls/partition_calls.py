"""All calls to the outside of one partition: a window for each agent that makes any."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from typing import Any

from engine.calls.outside import OutsideCalls
from engine.declare.agent import Agent
from engine.declare.handlers import Prepare
from engine.failures.lane_loop import LaneLoop
from engine.positions.losses import Losses
from engine.work.context import EngineContext
from engine.work.fetched import Fetched
from engine.work.intake import Intake
from engine.work.life import StaleBatch

log = logging.getLogger(__name__)

Source = tuple[str, str]  # agent and topic


class PartitionCalls:
    """The windows of one life of a partition, by agent and topic."""

    def __init__(self, intake: Intake, lanes: LaneLoop, losses: Losses, context: EngineContext) -> None:
        self._intake = intake
        self._lanes = lanes
        self._losses = losses
        self._context = context
        self._windows: dict[Source, OutsideCalls] = {}

    async def process(self, fetched: Fetched, agent: Agent[Any], prepare: Prepare) -> None:
        """Handle the records of a fetch, each after its call to the outside; returns before that is done."""
        source, life = (agent.name, fetched.topic), self._intake.work.life
        if self._losses.is_behind_gap(source, fetched):
            self._intake.finished(fetched)
            return
        try:
            life.check(fetched.epoch, fetched.topic)
            calls = self._windows.get(source)
            if calls is None:
                calls = self._windows[source] = OutsideCalls(self._intake, self._lanes, agent, prepare, self._context)
            calls.add(fetched)
        except StaleBatch as error:
            # Not the agent's concern: its calls for other partitions go on.
            log.info("%s", error)
        finally:
            self._intake.backlog.busy_at = time.monotonic()
            self._intake.finished(fetched)

    def there_is_room(self) -> None:
        """A record that has to wait in a lane may find room there now."""
        for calls in self._windows.values():
            calls.there_is_room()

    def is_busy_with(self, topic: str) -> bool:
        """Whether records of `topic` wait for calls."""
        return any(calls for (_, of), calls in self._windows.items() if of == topic)

    def agents(self) -> set[str]:
        """Agents whose records wait for calls."""
        return {agent for (agent, _), calls in self._windows.items() if calls}

    def stalled(self) -> Iterator[Source]:
        """Agents and topics whose next record has to wait in its lane, and finds no room there."""
        yield from (source for source, calls in self._windows.items() if calls.stands_still)

    def first_offset(self, source: Source) -> int | None:
        """The offset of the first record of an agent that waits for its call; None where none does."""
        calls = self._windows.get(source)
        return calls.first_offset() if calls is not None else None

    def cancel(self) -> None:
        """End all calls; what they did is asked for again in the partition's next life."""
        for calls in self._windows.values():
            calls.cancel()
        self._windows.clear()
