"""Gauges of what is going on now: how far agents are behind, which partitions are here, how restoring gets on."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from faust.types import TP
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from engine.declare.service import ServiceGauge
from engine.health.retention import retention_left
from engine.health.standstill import Place
from engine.log.ports import TransportError
from engine.partition.engine import Engine
from engine.store.store import StoreError

REFRESH_TIMEOUT_S = 2.0


class Lag(NamedTuple):
    """What an agent has not committed yet of a partition: offsets, and the age of the oldest record it has fetched."""

    topic: str
    partition: int
    agent: str
    records: int
    seconds: float


class Gauges:
    """Families for `/metrics`; the ends of topics are asked for once per scrape, beforehand."""

    def __init__(self, engine: Engine, declared: Sequence[ServiceGauge] = ()) -> None:
        self._engine = engine
        self._declared = declared
        self._ends: dict[TP, int] = {}
        engine.metrics.gauges.append(self.collect)

    async def refresh(self, consumer: Any) -> None:
        """Ask Faust's consumer where the topics of owned partitions end; what it cannot tell now stays as it was."""
        topics = {topic.name for topic in self._engine.agents.values()}
        wanted = [TP(topic, number) for topic in sorted(topics) for number in self._running()]
        if not wanted:
            return
        try:
            async with asyncio.timeout(REFRESH_TIMEOUT_S):
                self._ends = dict(await consumer.highwaters(*wanted))
        except (TransportError, TimeoutError):
            return

    def collect(self) -> Iterable[Metric]:
        """Families of this moment."""
        yield from self._lag()
        yield from self._partitions()
        yield from self._disk()
        yield from self._calls()
        yield self._faults()
        yield self._lost()
        yield self._retention_left()
        yield self._stalled()
        yield from self._of_services()

    def _running(self) -> list[int]:
        return [number for number, task in self._engine.tasks.items() if task.life.is_running()]

    def _lag(self) -> Iterator[Metric]:
        labels = ("topic", "partition", "agent")
        records = GaugeMetricFamily("consumer_lag_records", "offsets an agent has not committed yet", labels=labels)
        seconds = GaugeMetricFamily(
            "consumer_lag_seconds", "age of the oldest record an agent has fetched and not handled", labels=labels
        )
        for lag in self.lags():
            values = lag.topic, str(lag.partition), lag.agent
            records.add_metric(values, lag.records)
            seconds.add_metric(values, lag.seconds)
        yield records
        yield seconds

    def lags(self) -> Iterator[Lag]:
        """How far each agent is behind in each partition, as of the last `refresh`."""
        now_ms = time.time() * 1000
        for number in self._running():
            task = self._engine.tasks[number]
            for agent, topic in self._engine.agents.items():
                position = task.reached(agent, topic.name)
                end = self._ends.get(TP(topic.name, number), position)
                oldest_ms = task.backlog.oldest_ms.get((agent, topic.name), now_ms)
                yield Lag(topic.name, number, agent, max(0, end - position), max(0.0, now_ms - oldest_ms) / 1000)

    def _of_services(self) -> Iterator[Metric]:
        for gauge in self._declared:
            parts: defaultdict[str, list[float]] = defaultdict(list)
            for number in self._running():
                with contextlib.suppress(StoreError):  # the fault says so; the other figures are worth having
                    for value, figure in gauge.read(self._engine.tasks[number]).items():
                        parts[value].append(figure)
            family = GaugeMetricFamily(gauge.name, gauge.help, labels=(gauge.label,) if gauge.label else ())
            for value, figures in sorted(parts.items()):
                family.add_metric((value,) if gauge.label else (), gauge.combine(figures))
            yield family

    def _calls(self) -> Iterator[Metric]:
        engine = self._engine
        paused = {pause.agent for pause in engine.pauses()}
        calls = CounterMetricFamily("outside_calls", "calls to the outside by outcome", labels=("agent", "outcome"))
        is_open = GaugeMetricFamily("circuit_open", "1 while an agent's calls are paused", labels=("agent",))
        for agent, circuit in engine.circuits.items():
            calls.add_metric((agent, "ok"), circuit.answered)
            calls.add_metric((agent, "failed"), circuit.failures)
            is_open.add_metric((agent,), agent in paused)
        yield calls
        yield is_open

    def _stalled(self) -> Metric:
        labels = ("agent", "topic", "partition")
        help = "since when an agent that has records to handle has got no further, 0 while it does"
        family, seconds = GaugeMetricFamily("stalled_seconds", help, labels=labels), self._engine.standstills.seconds()
        for number in self._running():
            for agent, topic in self._engine.agents.items():
                stalled = seconds.get(Place(agent, topic.name, number), 0.0)
                family.add_metric((agent, topic.name, str(number)), stalled)
        return family

    def _faults(self) -> Metric:
        family = GaugeMetricFamily("open_faults", "faults that wait for a person or a repair", labels=("kind",))
        for kind, count in Counter(fault.kind for fault in self._engine.faults.open()).items():
            family.add_metric((kind,), count)
        return family

    def _lost(self) -> Metric:
        family = GaugeMetricFamily(
            "records_lost", "records gone before an agent had read them, and not accepted", labels=("agent", "topic")
        )
        lost: Counter[tuple[str, str]] = Counter({(name, topic.name): 0 for name, topic in self._engine.agents.items()})
        for task in self._engine.tasks.values():
            lost.update({(loss.agent, loss.topic): loss.records for loss in task.losses.all()})
        for source, records in lost.items():
            family.add_metric(source, records)
        return family

    def _retention_left(self) -> Metric:
        family = GaugeMetricFamily(
            "retention_left_seconds",
            "until the log may remove an agent's oldest unread record; only where records wait and are not kept",
            labels=("agent", "topic", "partition"),
        )
        for left in retention_left(self._engine):
            family.add_metric((left.agent, left.topic, str(left.partition)), left.seconds)
        return family

    def _partitions(self) -> Iterator[Metric]:
        engine = self._engine
        running = self._running()
        # The same for all workers: whether every number has an owner shows only in the sum over them.
        yield GaugeMetricFamily(
            "partitions_configured",
            f"{engine.settings.variable('partitions')} of this worker",
            engine.settings.partitions,
        )
        yield GaugeMetricFamily("partitions_owned", "partition numbers given to this worker", len(engine.numbers))
        yield GaugeMetricFamily(
            "partitions_restoring", "owned partition numbers that cannot be read yet", len(engine.numbers - {*running})
        )
        applied = GaugeMetricFamily("restore_applied_records", "changelog records applied", labels=("partition",))
        total = GaugeMetricFamily("restore_total_records", "changelog records to apply", labels=("partition",))
        stored = GaugeMetricFamily("store_size_bytes", "bytes of a partition's RocksDB", labels=("partition",))
        for number, task in engine.tasks.items():
            applied.add_metric((str(number),), task.progress.applied)
            total.add_metric((str(number),), task.progress.total)
            with contextlib.suppress(StoreError):  # the folder is gone
                stored.add_metric((str(number),), task.store_size_bytes())
        yield applied
        yield total
        yield stored

    def _disk(self) -> Iterator[Metric]:
        family = GaugeMetricFamily("data_free_bytes", "bytes free on the disk of the data folder")
        if self._engine.settings.transport != "memory":
            with contextlib.suppress(OSError):  # the folder is gone: the doctor says what to do
                family.add_metric((), shutil.disk_usage(self._engine.settings.data_dir).free)
        yield family
