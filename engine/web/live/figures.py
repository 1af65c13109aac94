"""Figures of one worker at this moment, and of several together."""

from __future__ import annotations

from collections import Counter
from time import monotonic
from typing import Final, NamedTuple, get_args

import msgspec

from engine.failures.dead_letters import DEAD_LETTER_COUNTS
from engine.observe.gauges import Gauges
from engine.partition.commit_listeners import ChangedRows
from engine.partition.engine import Engine
from engine.partition.task import PartitionTask, TaskState
from tables.sagas import SAGA_COUNTS, SagaState

SAGA_STATES: Final[tuple[str, ...]] = get_args(SagaState)


class Figures(msgspec.Struct, frozen=True):
    """What goes on: rates of the last second or so, lag, and how many sagas, dead letters and aggregates stand where.

    `faults` are the sentences of all that is missing, damaged or waits for a decision (see engine/health/faults.py).
    `lag_records` adds up all agents and partitions; `lag_seconds` is the age of the oldest record under way.
    """

    workers: int = 1
    partitions: int = 0
    records_per_second: float = 0.0
    commits_per_second: float = 0.0
    lag_records: int = 0
    lag_seconds: float = 0.0
    sagas: dict[str, int] = {}
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
            {state: self.sagas.get(state, 0) + other.sagas.get(state, 0) for state in SAGA_STATES},
            self.dead_letters + other.dead_letters,
            self.aggregates_waiting + other.aggregates_waiting,
            tuple(dict.fromkeys((*self.faults, *other.faults))),
        )


class _Counted(NamedTuple):
    """What the rows of a partition say, for as long as it lives in `task` and no commit changes them."""

    task: PartitionTask
    sagas: dict[str, int]
    dead_letters: int


class FiguresHere:
    """Figures of this worker. Rows are read again only after a commit has changed them."""

    def __init__(self, engine: Engine, gauges: Gauges) -> None:
        self._engine = engine
        self._gauges = gauges
        self._counted: dict[int, _Counted] = {}
        self._measured = monotonic(), engine.metrics.committed_records, engine.metrics.commits

    def committed(self, number: int, rows: ChangedRows) -> None:
        """Take note of what a commit of partition `number` changed."""
        if SAGA_COUNTS in rows or DEAD_LETTER_COUNTS in rows:
            self._counted.pop(number, None)

    def read(self) -> Figures:
        """Figures since the last call."""
        metrics = self._engine.metrics
        before, records, commits = self._measured
        self._measured = now, *_ = monotonic(), metrics.committed_records, metrics.commits
        passed_s = max(now - before, 0.001)
        lags = list(self._gauges.lags())
        tasks = [task for task in self._engine.tasks.values() if task.state is TaskState.RUNNING]
        counted = [self._count(task) for task in tasks]
        return Figures(
            partitions=len(tasks),
            records_per_second=round((metrics.committed_records - records) / passed_s, 1),
            commits_per_second=round((metrics.commits - commits) / passed_s, 1),
            lag_records=sum(lag.records for lag in lags),
            lag_seconds=round(max((lag.seconds for lag in lags), default=0.0), 1),
            sagas={state: sum(part.sagas[state] for part in counted) for state in SAGA_STATES},
            dead_letters=sum(part.dead_letters for part in counted),
            aggregates_waiting=sum(len(task.lanes.index) for task in tasks),
            faults=tuple(fault.sentence for fault in self._engine.faults.open()),
        )

    def _count(self, task: PartitionTask) -> _Counted:
        known = self._counted.get(task.number)
        if known is None or known.task is not task:
            sagas = Counter({state: row.count for state, row in task.scan(SAGA_COUNTS)})
            letters = sum(row.count for _, row in task.scan(DEAD_LETTER_COUNTS))
            known = self._counted[task.number] = _Counted(task, {s: sagas[s] for s in SAGA_STATES}, letters)
        return known
