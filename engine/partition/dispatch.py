"""Dispatch: how fetches reach their handlers - at once, when the partition is quiet, after calls, or in turns."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from engine.calls.partition_calls import PartitionCalls
from engine.declare.agent import Agent
from engine.declare.handlers import Prepare, RecordHandler
from engine.failures.classify import InfrastructureError
from engine.failures.lane_loop import LaneLoop
from engine.failures.lanes import WaitingKey
from engine.health.stalled import StalledFetches
from engine.log.ports import Record
from engine.partition.lingering import LingeringFetches
from engine.positions.losses import Losses
from engine.work.context import EngineContext
from engine.work.fetched import Fetched
from engine.work.intake import Intake
from engine.work.life import StaleBatch

log = logging.getLogger(__name__)


class Dispatch:
    """The fetches of one life of a partition, on their way from the transport to the agents' handlers."""

    def __init__(
        self,
        intake: Intake,
        losses: Losses,
        lanes: LaneLoop,
        stalled: StalledFetches,
        calls: PartitionCalls,
        lingering: LingeringFetches,
        context: EngineContext,
    ) -> None:
        self.life = intake.work.life
        self._intake = intake
        self._work = intake.work
        self._backlog = intake.backlog
        self._losses = losses
        self._lanes = lanes
        self._stalled = stalled
        self._calls = calls
        self._lingering = lingering
        self._context = context

    # ---- what the transport tells

    def fetch_offset(self, topic: str) -> int:
        """Where to go on reading `topic`: the position of its slowest agent that does not stand still."""
        agents, positions = self._context.agents_of(topic), self._work.positions
        if self._losses:
            agents = tuple(agent for agent in agents if (agent, topic) not in self._losses)
        return min((positions.get((agent, topic), 0) for agent in agents), default=0)

    def fetched(self, topic: str, records: Sequence[Record], next_offset: int) -> Fetched:
        """Take note of a fetch that is on its way to the agents of `topic`."""
        self._work.flows()
        agents = self._context.agents_of(topic)
        self._backlog.queued[topic] += len(agents)
        self._note_oldest(agents, topic, records)
        return Fetched(self, topic, records, next_offset)

    def linger(self, topic: str, records: Sequence[Record], next_offset: int) -> bool:
        """Take a fetch that need not go to its agents, as all of them let it linger; False for any other."""
        agents = self._context.agents_of(topic)
        # Never past one that is still on its way to an agent: its records would lie before the agent's position.
        if (
            self._losses
            or self._backlog.queued[topic]
            or not self._lingering.take(agents, Fetched(self, topic, records, next_offset))
        ):
            return False
        self._note_oldest(agents, topic, records)
        return True

    def _note_oldest(self, agents: Sequence[str], topic: str, records: Sequence[Record]) -> None:
        for agent in agents:
            self._backlog.oldest_ms.setdefault((agent, topic), records[0].timestamp_ms)

    def passed(self, topic: str, offset: int) -> None:
        """The transport moved past transaction markers (or dropped records) without delivering anything."""
        if self.is_busy_with(topic):
            return
        for agent in self._context.agents_of(topic):
            if (agent, topic) not in self._losses:
                self._work.pass_markers((agent, topic), offset)
        self._work.waiters.notify()

    def is_busy_with(self, topic: str) -> bool:
        """Whether agents still have to finish records of `topic` that were fetched."""
        waiting = self._lingering, self._stalled, self._calls
        return bool(self._backlog.queued[topic]) or any(where.is_busy_with(topic) for where in waiting)

    def give_back(self, topic: str, records: Sequence[Record], agent: str, turns: Sequence[WaitingKey]) -> None:
        """Let an agent have records again that have waited in lanes."""
        self._backlog.queued[topic] += len(self._context.agents_of(topic))
        self._context.deliver(Fetched(self, topic, records, 0, agent, turns))

    # ---- what agents do with a fetch

    def not_for(self, fetched: Fetched) -> None:
        """An agent was handed a fetch that is another agent's."""
        self._intake.finished(fetched)

    async def process(self, fetched: Fetched, agent: str, handle: RecordHandler) -> None:
        """Handle the records of a fetch for an agent, in order and in slices, within the partition's unit of work.

        A record that fails is taken back alone, and tried again or made a dead letter. Raises StaleBatch when the
        partition is lost on the way; nothing of an uncommitted record then stays.
        """
        source, life = (agent, fetched.topic), self.life
        if self._losses.is_behind_gap(source, fetched):
            self._intake.finished(fetched)
            return
        try:
            if fetched.turns:
                await self._lanes.take_turns(source, fetched, handle)
                self._work.commit_soon()
            else:
                await self._stalled.handle(source, fetched, handle)
        except InfrastructureError as error:
            life.fail(error)
            raise StaleBatch(str(error)) from error
        finally:
            if fetched.epoch == life.epoch and not fetched.turns and source not in self._stalled:
                self._backlog.oldest_ms.pop(source, None)
            self._backlog.busy_at = time.monotonic()
            self._intake.finished(fetched)

    async def process_later(self, fetched: Fetched, agent: str, handle: RecordHandler) -> None:
        """Handle the records of a fetch for a deferred agent when the partition is quiet; returns before that is done.

        When all agents of the topic are deferred, later fetches go to `handle` past them.
        """
        if fetched.turns or self._losses.is_behind_gap((agent, fetched.topic), fetched):
            await self.process(fetched, agent, handle)
            return
        try:
            self.life.check(fetched.epoch, fetched.topic)
            source = agent, fetched.topic
            self._lingering.add(source, fetched, handle)
        except StaleBatch as error:
            log.info("%s", error)
        finally:
            self._intake.finished(fetched)

    async def process_after(self, fetched: Fetched, agent: Agent[Any], prepare: Prepare) -> None:
        """Handle the records of a fetch, each after its call to the outside; returns before that is done."""
        await self._calls.process(fetched, agent, prepare)
