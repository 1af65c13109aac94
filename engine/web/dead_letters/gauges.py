"""Figures of dead letters and of what waits behind them, in the partitions of this worker."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

from engine.declare.partition import Partition
from engine.declare.service import Service
from engine.failures.dead_letters import DEAD_LETTER_COUNTS, DEAD_LETTERS
from engine.health.standstill import without_room
from engine.partition.task import PartitionTask

service = Service("dead-letter-gauges")


@service.gauge("dead_letters", "dead letters that nobody has resolved or discarded yet", label="topic")
def open_letters(task: Partition) -> Mapping[str, float]:
    """Open letters (retrying ones included) by the topic they came from."""
    return {topic: row.count for topic, row in task.scan(DEAD_LETTER_COUNTS)}


@service.gauge("dead_letter_oldest_seconds", "age of the oldest open dead letter, 0 when there is none", combine=max)
def oldest_letter(task: Partition) -> Mapping[str, float]:
    """How long the oldest one is open: the first row, as letters are sorted by the time they failed."""
    _, letter = next(task.scan(DEAD_LETTERS), (0, None))
    return {"": 0.0 if letter is None else max(0.0, time.time() - letter.failed_ms / 1000)}


@service.gauge("records_waiting", "records that wait for another try, or behind one that failed", label="agent")
def waiting_records(task: PartitionTask) -> Mapping[str, float]:
    """Records in lanes, without those that are dead letters."""
    return task.lanes.index.waiting


@service.gauge("aggregates_waiting", "aggregates that stand still behind a record that failed", label="state")
def waiting_aggregates(task: PartitionTask) -> Mapping[str, float]:
    """Lanes by what their first record is: tried again later, or parked as a dead letter."""
    index = task.lanes.index
    return {"retrying": len(index) - index.parked, "parked": index.parked}


@service.gauge("sources_stalled", "topics that stand still for an agent, as no more records may wait", label="agent")
def stalled_sources(task: PartitionTask) -> Mapping[str, float]:
    """Agents of whose topic nothing is read any more, until somebody decides about a dead letter."""
    return Counter(agent for agent, _ in without_room(task))
