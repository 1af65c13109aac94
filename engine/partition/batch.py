"""Batches: the records of one fetch of one partition, as they travel through Faust to an agent."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import TYPE_CHECKING

from engine.declare.handlers import Handlers, RecordHandler
from engine.declare.settings import Settings
from engine.failures.lanes import WaitingKey
from engine.log.ports import Record

if TYPE_CHECKING:
    from engine.calls.outside import Prepare
    from engine.partition.task import PartitionTask


class StaleBatch(Exception):
    """The batch belongs to an earlier life of its partition; its records come again."""


class Fetched:
    """What the transport hands to Faust as one message, for every agent of the topic.

    `next_offset` lies behind the last record and behind transaction markers that follow it. `epoch` is the life of the
    partition task it was fetched in. With `turns`, these are records that have waited in lanes (see lane_loop.py) and
    whose turn it is: they are for `agent` alone, and no position moves with them.
    """

    __slots__ = ("agent", "epoch", "next_offset", "records", "task", "topic", "turns")

    def __init__(
        self,
        task: PartitionTask,
        topic: str,
        records: Sequence[Record],
        next_offset: int,
        agent: str | None = None,
        turns: Sequence[WaitingKey] = (),
    ) -> None:
        self.task = task
        self.topic = topic
        self.records = records
        self.next_offset = next_offset
        self.epoch = task.epoch
        self.agent = agent
        self.turns = turns


class Batch:
    """A fetch as one agent sees it."""

    __slots__ = ("_fetched", "agent", "done")

    def __init__(self, fetched: Fetched, agent: str) -> None:
        self._fetched = fetched
        self.agent = agent
        self.done = False

    @property
    def topic(self) -> str:
        """The topic the records were read from."""
        return self._fetched.topic

    @property
    def partition(self) -> int:
        """The partition number."""
        return self._fetched.task.number

    @property
    def task(self) -> PartitionTask:
        """The partition task that owns the records."""
        return self._fetched.task

    @property
    def records(self) -> Sequence[Record]:
        """The records not handled by this agent yet, oldest first."""
        return self._fetched.task.unhandled(self._fetched, self.agent)

    async def process(self, handlers: Handlers | RecordHandler) -> None:
        """Handle every record in order within the partition's unit of work.

        A record that fails is taken back alone and becomes a dead letter. Raises StaleBatch when the partition is lost
        on the way; nothing of an uncommitted record then stays.
        """
        await self._fetched.task.process(self._fetched, self.agent, handlers)
        self.done = True

    async def process_later(self, handlers: Handlers | RecordHandler) -> None:
        """Handle every record as `process` does, but not at once on a busy partition; returns before that is done.

        For projections: they are handled together when nothing else has come for a moment, somebody waits for them, or
        ORDERS_COMMIT_INTERVAL is over. When all agents of the topic do so, later fetches go to `handlers` past them.
        """
        await self._fetched.task.process_later(self._fetched, self.agent, handlers)
        self.done = True

    async def process_after(self, prepare: Prepare, handlers: Handlers) -> None:
        """Handle every record as `process` does, but each after a call to the outside; returns before that is done.

        `prepare(envelope, work)` makes the call of a record, or None where none is needed; it is synchronous and may
        read rows, which are as the records of the same key before it left them. Calls of different keys run at the same
        time, at most `outside_calls_max`. The record's handler then finds what its call returned in `work.outcome`. A
        call that raises Unavailable, or takes longer than ORDERS_CALL_TIMEOUT, is made again until it does not; any
        other error makes its record a dead letter. While most calls fail, none is made.
        """
        await self._fetched.task.calls.process(self._fetched, self.agent, prepare, handlers)
        self.done = True


class Batches(AsyncIterator[Batch]):
    """What an agent iterates over: its batches, one after the other."""

    settings: Settings
