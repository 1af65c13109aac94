"""Losses of one partition: each agent's position compared with the log, and agents that stand still before a gap.

An agent whose position does not fit stands still until a person accepts the loss; all other agents go on. Records that
were fetched before the gap are still handled.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from engine.declare.unit_of_work import UnitOfWork
from engine.health.faults import Fault, FaultKey
from engine.log.ports import TransportError
from engine.observe.about import about
from engine.positions.positions import (
    ACCEPTED_LOSSES,
    CUT_OFF,
    POSITIONS,
    REMOVED,
    AcceptedLoss,
    AgentPosition,
    Loss,
    accepted_loss_key,
    find_loss,
    position_key,
)
from engine.positions.tokens import topic_mark
from engine.work.context import EngineContext
from engine.work.fetched import Fetched
from engine.work.open_work import OpenWork

log = logging.getLogger(__name__)

LOST_RECORDS: Final = "lost records"
LOOK_PAUSE_S: Final = 0.5

Source = tuple[str, str]  # agent and topic


class TopicNow(NamedTuple):
    """What a topic is now: its id, empty where the broker has none, and the bounds of the partition."""

    id: str
    start: int
    end: int


class Losses:
    """What the topics of one partition lack, in one life of the partition.

    `is_busy_with` says whether agents still have records of a topic; `take_up` lets all agents go on from where they
    are.
    """

    def __init__(
        self,
        work: OpenWork,
        context: EngineContext,
        is_busy_with: Callable[[str], bool],
        take_up: Callable[[], Awaitable[None]],
    ) -> None:
        self._work = work
        self._number = work.partition.number
        self._is_busy_with = is_busy_with
        self._take_up = take_up
        self._context = context
        self._found: dict[Source, Loss] = {}
        self._looking: dict[str, asyncio.Task[None]] = {}  # by topic; nothing of it is taken meanwhile
        self._accepted: list[AcceptedLoss] = []

    # ---- what the partition asks

    def __bool__(self) -> bool:
        """Whether anything is missing, or looked for."""
        return bool(self._found or self._looking)

    def __contains__(self, source: Source) -> bool:
        """Whether this agent stands still."""
        return source in self._found

    def all(self) -> Sequence[Loss]:
        """Everything that is missing and not accepted."""
        return tuple(self._found.values())

    def of(self, source: Source) -> Loss | None:
        """What is missing for an agent."""
        return self._found.get(source)

    def is_another_log(self, source: Source) -> bool:
        """Whether an agent's position says nothing about the log as it is now."""
        loss = self._found.get(source)
        return loss is not None and loss.kind != REMOVED

    def gone(self, source: Source, offset: int, mark: int | None = None) -> str | None:
        """Why the record at an offset will never be handled by an agent, None when it was or may be.

        `mark` is that of the topic which the offset counts (see engine.positions.tokens), None where it is not known.
        """
        open_loss = self._found.get(source)
        if open_loss is not None and open_loss.first <= offset < open_loss.end:
            return open_loss.detail
        for accepted in self._accepted:
            loss = accepted.loss
            is_of_another = mark is not None and loss.topic_id and mark != topic_mark(loss.topic_id)
            if (loss.agent, loss.topic) == source and loss.first <= offset < loss.end and not is_of_another:
                return accepted.detail
        return None

    async def is_beyond_end(self, topic: str, offset: int) -> bool:
        """Whether an offset was never written to a topic as it is now; False when the log cannot be asked."""
        try:
            return offset >= await self._context.broker.end_offset(topic, self._number)
        except TransportError:
            return False

    async def fits(self, source: Source) -> bool:
        """Whether an agent's position counts the topic as it is now; where not, what is missing is looked for.

        Raises TransportError.
        """
        agent, topic = source
        now = (await self._ask([topic])).get(topic)
        position = AgentPosition(agent, topic, self._work.positions.get(source, 0), self.topic_id(source))
        if now is not None and find_loss(position, self._number, now.id, now.start, now.end) is None:
            return source not in self._found
        self.suspect(topic)
        return False

    def accepted(self, source: Source) -> Sequence[str]:
        """What an agent went on without, and who accepted that."""
        return [made.detail for made in self._accepted if (made.loss.agent, made.loss.topic) == source]

    def why_incomplete(self, source: Source, first: int, start: int) -> str | None:
        """What a topic that begins at `start` lacks from `first` on of what an agent has handled, None when nothing."""
        if (loss := self._found.get(source)) is not None:
            return loss.detail
        details = list(self.accepted(source))
        if start > first:
            details.append(f"{source[1]}/{self._number} begins at {start}: its oldest records are gone")
        return "; ".join(details) or None

    def topic_id(self, source: Source) -> str:
        """Id of the topic that an agent's position counts."""
        return self._work.topic_ids.get(source, "")

    def is_behind_gap(self, source: Source, fetched: Fetched) -> bool:
        """Whether a fetch lies behind what is missing for an agent, so that it must not be handled."""
        loss = self._found.get(source)
        return loss is not None and not fetched.turns and fetched.records[-1].offset >= loss.goes_on_at

    def stop(self, topic: str) -> bool:
        """Whether nothing of a topic is to be taken: it is looked at, or all of its agents stand still."""
        return topic in self._looking or all((agent, topic) in self._found for agent in self._context.agents_of(topic))

    # ---- comparing

    async def load(self, work: UnitOfWork) -> dict[Source, int]:
        """Compare all stored positions with the log; positions by source, new ones included. Raises TransportError.

        Rows of positions that are new, or of which more is known now, are put into `work`.

        An agent without a position is new, and starts from the earliest record there is; but in a store whose positions
        have no topic ids yet it may have lost what it had not read, and stands at 0.
        """
        rows = {(row.agent, row.topic): row for _, row in self._work.partition.scan(POSITIONS)}
        self._accepted = [row for _, row in self._work.partition.scan(ACCEPTED_LOSSES)]
        ids = self._work.topic_ids = {source: row.topic_id for source, row in rows.items()}
        topics = await self._ask({topic.name for topic in self._context.agents.values()})
        has_ids = any(row.topic_id for row in rows.values())
        for source in self._sources(topics):
            now, row = topics[source[1]], rows.get(source)
            position = row or AgentPosition(*source, now.start if has_ids else 0, now.id)
            loss = self._compare(position, now)
            if loss is None:
                position = replace(position, topic_id=now.id)
            elif loss.kind == CUT_OFF:
                position = replace(position, cut_off_at=loss.goes_on_at)
            ids[source] = position.topic_id
            if position != row:
                work.put(POSITIONS, position_key(*source), position)
            rows[source] = position
        return {source: row.offset for source, row in rows.items()}

    async def look(self, names: Collection[str]) -> None:
        """Compare the positions in these topics with the log, and report what does not fit; raises TransportError."""
        topics = await self._ask(names)
        for source in self._sources(topics):
            known, offset = self._found.get(source), self._work.positions.get(source, 0)
            cut_off_at = known.goes_on_at if known is not None and known.kind == CUT_OFF else None
            position = AgentPosition(*source, offset, self.topic_id(source), cut_off_at)
            loss = self._compare(position, topics[source[1]])
            if loss is not None and loss.kind == CUT_OFF and cut_off_at is None:
                work = self._work.open()
                work.put(POSITIONS, position_key(*source), replace(position, cut_off_at=loss.goes_on_at))
                work.release()

    def _sources(self, topics: Collection[str]) -> Iterable[Source]:
        return [(agent, topic) for topic in topics for agent in self._context.agents_of(topic)]

    async def _ask(self, names: Collection[str]) -> Mapping[str, TopicNow]:
        """What these topics are now; one that is missing is left out."""
        broker, number = self._context.broker, self._number
        ids = await broker.topic_ids(names)
        bounds = await broker.bounds([(name, number) for name in ids])
        return {name: TopicNow(id, *bounds[name, number]) for name, id in ids.items()}

    def _compare(self, position: AgentPosition, now: TopicNow) -> Loss | None:
        source = position.agent, position.topic
        loss = find_loss(position, self._number, now.id, now.start, now.end)
        if loss is None:
            self._found.pop(source, None)
            self._context.faults.clear(self._key(source))
        else:
            self._found[source] = loss
            advice = loss.advice(self._context.settings.application)
            fault = Fault(LOST_RECORDS, loss.detail, advice, self._number)
            self._context.faults.report(self._key(source), fault)
        return loss

    def _key(self, source: Source) -> FaultKey:
        return (LOST_RECORDS, *source, self._number)

    # ---- while records flow

    def suspect(self, topic: str) -> None:
        """The log has answered that the position in a topic is out of range, or that the topic is another one."""
        if topic not in self._looking and self._work.life.is_running():
            self._looking[topic] = self._work.life.background.run(self._look_again(topic), f"look at {topic}")

    async def watch(self, ids: Mapping[str, str]) -> None:
        """Look at topics that have another id than before, and again at those that lack something.

        Raises TransportError.
        """
        for source in self._sources({topic.name for topic in self._context.agents.values()}):
            known, now = self.topic_id(source), ids.get(source[1], "")
            if known and now and known != now and source not in self._found:
                self.suspect(source[1])
        found = {topic for _, topic in self._found}
        before = set(self._found)
        if found:
            await self.look(found)
        for _, topic in before - self._found.keys():
            self.suspect(topic)

    async def _look_again(self, topic: str) -> None:
        """Find out what is missing, let the agents finish what they have fetched, and take up what there is."""
        while not await self._has_looked(topic) or self._is_busy_with(topic):
            await asyncio.sleep(LOOK_PAUSE_S)
        await self.look([topic])
        del self._looking[topic]
        await self._take_up()

    async def _has_looked(self, topic: str) -> bool:
        try:
            await self.look([topic])
        except TransportError as error:
            log.warning("%s", error, extra=about(topic=topic, partition=self._number))
            return False
        return True

    def cancel(self) -> None:
        """Stop looking; what is wrong is found again."""
        for looking in self._looking.values():
            if looking is not asyncio.current_task():
                looking.cancel()
        self._looking.clear()

    # ---- accepting

    def accept(self, topic: str, by: str, reason: str, at_ms: int) -> Sequence[AcceptedLoss]:
        """Let the agents of a topic go on behind what is missing: in the open unit of work of a suspended partition."""
        work, accepted = self._work.open(), []
        for source, loss in [(source, loss) for source, loss in self._found.items() if loss.topic == topic]:
            written = AcceptedLoss(loss, at_ms, by, reason)
            work.put(ACCEPTED_LOSSES, accepted_loss_key(loss, at_ms), written)
            work.put(POSITIONS, position_key(*source), AgentPosition(*source, loss.goes_on_at, loss.topic_id))
            self._work.move(source, loss.goes_on_at)
            self._work.topic_ids[source] = loss.topic_id
            del self._found[source]
            accepted.append(written)
        self._accepted += accepted
        work.release()
        return accepted

    def forget_accepted(self, topic: str) -> None:
        """What was accepted of a topic is committed: it is no fault any more."""
        for agent in self._context.agents_of(topic):
            if (agent, topic) not in self._found:
                self._context.faults.clear(self._key((agent, topic)))
