"""The records of one fetch of one partition, as they travel through Faust to the agents of their topic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from engine.failures.lanes import WaitingKey
from engine.log.ports import Record

if TYPE_CHECKING:
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
