"""Metrics: plain integers on the hot path, turned into Prometheus families only when somebody scrapes."""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

PROCESSING_BOUNDS_S = (1e-6, 5e-6, 1e-5, 2.5e-5, 5e-5, 1e-4, 5e-4, 1e-3, 5e-3, 1e-2, 0.1, 1.0, 10.0)
COMMIT_RECORDS_BOUNDS = (1, 5, 10, 50, 100, 500, 1_000, 2_500, 5_000, 10_000, 20_000, 50_000)
LOOP_DELAY_BOUNDS_S = (1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
COMMIT_BOUNDS_S = (1e-3, 2.5e-3, 5e-3, 1e-2, 2.5e-2, 5e-2, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class Distribution:
    """A histogram with fixed bounds; `observe` costs about 0.2 µs (`bench.metrics_cost`)."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one observation."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def count(self) -> int:
        """How many observations there were."""
        return sum(self._counts)

    def buckets(self) -> tuple[list[tuple[str, float]], float]:
        """Cumulative counts by upper bound as Prometheus wants them, and the sum of what was observed."""
        total, buckets = 0, []
        for bound, count in zip((*map(str, self._bounds), "+Inf"), self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets, self._sum


class EventCounts:
    """How often records of one type ended in which status, and how long a record took."""

    __slots__ = ("dead_letters", "retries", "seconds")

    def __init__(self) -> None:
        self.dead_letters = 0
        self.retries = 0
        self.seconds = Distribution(PROCESSING_BOUNDS_S)

    def failed(self, ended: Literal["retry", "dead_letter"]) -> None:
        """Count how a record ended that did not go well; its time is observed like that of any other."""
        if ended == "retry":
            self.retries += 1
        else:
            self.dead_letters += 1

    def by_status(self) -> Mapping[str, int]:
        """Records by how they ended; every try was timed, so those that did not fail went well."""
        failed = {"retry": self.retries, "dead_letter": self.dead_letters}
        return {"ok": self.seconds.count() - sum(failed.values()), **failed}


class Metrics(Collector):
    """All figures of one application; `text` is what `/metrics` answers.

    Label sets are bounded: `type` holds only types the registry knows, everything else is "unknown". What is known
    beforehand is there from the start, at 0: Prometheus sees no increase in a counter whose first value is 1.
    """

    def __init__(self, types: Iterable[str] = (), agents: Iterable[str] = ()) -> None:
        self.events: dict[str, EventCounts] = {event_type: EventCounts() for event_type in types}
        self.commits = 0
        self.commit_failures = 0
        self.partition_failures = 0
        self.storage_errors = 0
        self.stores_rebuilt = 0
        self.store_scrubs = 0
        self.commit_seconds = Distribution(COMMIT_BOUNDS_S)
        self.commit_records = Distribution(COMMIT_RECORDS_BOUNDS)
        self.committed_records = 0
        self.dead_letters = 0
        self.retries: Counter[str] = Counter(dict.fromkeys(agents, 0))
        self.loop_delay_seconds = Distribution(LOOP_DELAY_BOUNDS_S)
        self.cache_hits = 0
        self.cache_misses = 0
        self.gauges: list[Callable[[], Iterable[Metric]]] = []
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def event(self, event_type: str) -> EventCounts:
        """The counts of one type."""
        counts = self.events.get(event_type)
        if counts is None:
            counts = self.events[event_type] = EventCounts()
        return counts

    def collect(self) -> Iterable[Metric]:
        """Prometheus families of this moment."""
        yield from self._events()
        yield from self._commits()
        yield CounterMetricFamily("dead_letters_written", "dead letters written by this worker", self.dead_letters)
        retries = CounterMetricFamily("retries", "failed records that were tried again", labels=("agent",))
        for agent, count in self.retries.items():
            retries.add_metric((agent,), count)
        yield retries
        yield CounterMetricFamily("cache_hits", "rows found in memory", self.cache_hits)
        yield CounterMetricFamily("cache_misses", "rows looked up in RocksDB", self.cache_misses)
        yield _histogram("event_loop_delay_seconds", "how late the event loop is", self.loop_delay_seconds)
        for gauges in self.gauges:
            yield from gauges()

    def _events(self) -> Iterator[Metric]:
        processed = CounterMetricFamily("events_processed", "records by type and outcome", labels=("type", "status"))
        seconds = HistogramMetricFamily("event_processing_seconds", "time of one record", labels=("type",))
        for event_type, counts in self.events.items():
            for status, count in counts.by_status().items():
                processed.add_metric((event_type, status), count)
            buckets, total = counts.seconds.buckets()
            seconds.add_metric((event_type,), buckets, total)
        yield processed
        yield seconds

    def _commits(self) -> Iterator[Metric]:
        yield CounterMetricFamily("commits", "transactions committed", self.commits)
        yield CounterMetricFamily("commit_failures", "partition tasks lost to a failed commit", self.commit_failures)
        yield CounterMetricFamily(
            "partition_failures",
            "partition tasks that an error ended, at their start or later",
            self.partition_failures,
        )
        yield CounterMetricFamily("storage_errors", "damage found on reading a store", self.storage_errors)
        yield CounterMetricFamily("stores_rebuilt", "damaged stores built anew", self.stores_rebuilt)
        yield CounterMetricFamily("store_scrubs", "stores read from end to end and found whole", self.store_scrubs)
        yield CounterMetricFamily("committed_records", "records in committed transactions", self.committed_records)
        yield _histogram("commit_seconds", "steps 1 to 6 of a commit", self.commit_seconds)
        yield _histogram("commit_records", "records in one commit", self.commit_records)

    def text(self) -> bytes:
        """The Prometheus text format."""
        return generate_latest(self._registry)


def _histogram(name: str, help: str, observed: Distribution) -> HistogramMetricFamily:
    buckets, total = observed.buckets()
    return HistogramMetricFamily(name, help, buckets, total)
