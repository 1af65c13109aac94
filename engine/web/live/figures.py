"""Figures of one worker at this moment, and of several together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from time import monotonic
from typing import Any, NamedTuple

import msgspec

from engine.declare.service import Figure
from engine.failures.dead_letters import DEAD_LETTER_COUNTS
from engine.observe.gauges import Gauges
from engine.partition.engine import Engine
from engine.partition.task import PartitionTask
from engine.work.commit_listeners import ChangedRows


class Figures(msgspec.Struct, frozen=True):
    """What goes on: rates of the last second or so, lag, and how many dead letters and aggregates stand where.

    `counts` are the figures that services declare: counts by state, by the name of the figure.
    `faults` are the sentences of all that is missing, damaged or waits for a decision (see engine/health/faults.py).
    `lag_records` adds up all agents and partitions; `lag_seconds` is the age of the oldest record under way.
    """

    workers: int = 1
    partitions: int = 0
    records_per_second: float = 0.0
    commits_per_second: float = 0.0
    lag_records: int = 0
    lag_seconds: float = 0.0
    counts: Mapping[str, Mapping[str, int]] = {}
    dead_letters: int = 0
    aggregates_waiting: int = 0
    faults: tuple[str, ...] = ()

    def plus(self, other: Figures) -> Figures:
        """Both workers together."""
        return Figures(
            self.workers + other.workers,
            self.partitions + other.partitions,
            round(self.records_per_second + other.records_per_second, 1),
            round(self.commits_per_second + other.commits_per_second, 1),
            self.lag_records + other.lag_records,
            max(self.lag_seconds, other.lag_seconds),
            _added(self.counts, other.counts),
            self.dead_letters + other.dead_letters,
            self.aggregates_waiting + other.aggregates_waiting,
            tuple(dict.fromkeys((*self.faults, *other.faults))),
        )

    def view(self) -> dict[str, Any]:
        """The figures as they are told: those of services stand among the others."""
        shown = msgspec.structs.asdict(self)
        return {**shown.pop("counts"), **shown}

    @classmethod
    def of_view(cls, data: bytes) -> Figures:
        """The figures that another worker tells; raises msgspec.MsgspecError."""
        told = msgspec.json.decode(data, type=dict[str, Any])
        own = {name: value for name, value in told.items() if name in cls.__struct_fields__}
        return msgspec.convert({**own, "counts": {name: told[name] for name in told.keys() - own.keys()}}, cls)


def _added(
    some: Mapping[str, Mapping[str, int]], others: Mapping[str, Mapping[str, int]]
) -> Mapping[str, Mapping[str, int]]:
    """Counts by name and state, of both."""
    found = {name: dict(counts) for name, counts in some.items()}
    for name, counts in others.items():
        states = found.setdefault(name, {})
        for state, count in counts.items():
            states[state] = states.get(state, 0) + count
    return found


class _Counted(NamedTuple):
    """What the rows of a partition say, for as long as it lives in `task` and no commit changes them."""

    task: PartitionTask
    counts: Mapping[str, Mapping[str, int]]
    dead_letters: int


class FiguresHere:
    """Figures of this worker, `declared` ones among them. Rows are read again only after a commit has changed them."""

    def __init__(self, engine: Engine, gauges: Gauges, declared: Sequence[Figure]) -> None:
        self._declared = declared
        self._tables = {DEAD_LETTER_COUNTS, *(figure.table for figure in declared)}
        self._engine = engine
        self._gauges = gauges
        self._counted: dict[int, _Counted] = {}
        self._measured = monotonic(), engine.metrics.committed_records, engine.metrics.commits

    def committed(self, number: int, rows: ChangedRows) -> None:
        """Take note of what a commit of partition `number` changed."""
        if not self._tables.isdisjoint(rows):
            self._counted.pop(number, None)

    def read(self) -> Figures:
        """Figures since the last call."""
        metrics = self._engine.metrics
        before, records, commits = self._measured
        self._measured = now, *_ = monotonic(), metrics.committed_records, metrics.commits
        passed_s = max(now - before, 0.001)
        lags = list(self._gauges.lags())
        tasks = [task for task in self._engine.tasks.values() if task.life.is_running()]
        counted = [self._count(task) for task in tasks]
        return Figures(
            partitions=len(tasks),
            records_per_second=round((metrics.committed_records - records) / passed_s, 1),
            commits_per_second=round((metrics.commits - commits) / passed_s, 1),
            lag_records=sum(lag.records for lag in lags),
            lag_seconds=round(max((lag.seconds for lag in lags), default=0.0), 1),
            counts=reduce(_added, (part.counts for part in counted), {figure.name: {} for figure in self._declared}),
            dead_letters=sum(part.dead_letters for part in counted),
            aggregates_waiting=sum(len(task.lanes.index) for task in tasks),
            faults=tuple(fault.sentence for fault in self._engine.faults.open()),
        )

    def _count(self, task: PartitionTask) -> _Counted:
        known = self._counted.get(task.number)
        if known is None or known.task is not task:
            counts = {figure.name: figure.read(task) for figure in self._declared}
            letters = sum(row.count for _, row in task.scan(DEAD_LETTER_COUNTS))
            known = self._counted[task.number] = _Counted(task, counts, letters)
        return known
