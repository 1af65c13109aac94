"""Fetches: the records of one fetch of one partition, as they travel through Faust to the agents of their topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from engine.declare.agent import Agent
from engine.declare.handlers import Prepare, RecordHandler
from engine.failures.lanes import WaitingKey
from engine.log.ports import Record
from engine.work.life import Life


class Dispatcher(Protocol):
    """What has fetched: it hands the records to the handlers of one agent after the other."""

    life: Life

    def not_for(self, fetched: Fetched) -> None:
        """An agent was handed a fetch that is another agent's."""

    async def process(self, fetched: Fetched, agent: str, handle: RecordHandler) -> None:
        """Handle the records of a fetch in slices."""

    async def process_later(self, fetched: Fetched, agent: str, handle: RecordHandler) -> None:
        """Handle the records of a fetch when the partition is quiet."""

    async def process_after(self, fetched: Fetched, agent: Agent[Any], prepare: Prepare) -> None:
        """Handle the records of a fetch after calls to the outside."""


class Fetched:
    """What the transport hands to Faust as one message, for every agent of the topic.

    `next_offset` lies behind the last record and behind transaction markers that follow it. `epoch` is that of the
    partition's life in which it was fetched. With `turns`, these are records that have waited in lanes (see
    lane_loop.py) and whose turn it is: they are for `agent` alone, and no position moves with them.
    """

    __slots__ = ("agent", "dispatch", "epoch", "next_offset", "records", "topic", "turns")

    def __init__(
        self,
        dispatch: Dispatcher,
        topic: str,
        records: Sequence[Record],
        next_offset: int,
        agent: str | None = None,
        turns: Sequence[WaitingKey] = (),
    ) -> None:
        self.dispatch = dispatch
        self.topic = topic
        self.records = records
        self.next_offset = next_offset
        self.epoch = dispatch.life.epoch
        self.agent = agent
        self.turns = turns
