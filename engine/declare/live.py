"""What a service declares for those who look at it: rows and figures of `/live`, and the histories of aggregates."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from engine.declare.partition import Partition
from engine.declare.table import AnyTable
from engine.declare.topic import Topic

LiveView = Callable[[int, Any, Any], Any]
"""Makes an item of partition number, key and row; None where the row is not shown."""

FigureFunction = Callable[[Partition], Mapping[str, int]]


class LiveTable(NamedTuple):
    """A table whose changes `/live` tells as `event`."""

    table: AnyTable
    event: str
    view: LiveView


class Figure(NamedTuple):
    """Counts by state among the figures of `/live`: `read` makes one partition's part, which changes with `table`."""

    name: str
    table: AnyTable
    read: FigureFunction


class History(NamedTuple):
    """Where the events of aggregates are: a table whose keys begin with the aggregate's id, or a topic.

    A topic is looked into for the aggregates of `topics` alone, and in its newest records alone.
    """

    where: AnyTable | Topic
    topics: Sequence[Topic]
