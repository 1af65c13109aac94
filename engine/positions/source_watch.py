"""The watch over an application's topics while a worker runs: made anew, missing, or with partitions added."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Final

from engine.health.faults import Fault, FaultKey
from engine.log.ports import TopicSpec, TransportError
from engine.partition.live_engine import LiveEngine
from engine.store.opening import watch_changelogs

log = logging.getLogger(__name__)

WATCH_INTERVAL_S: Final = 10.0
LOOKS_PER_RETENTION: Final = 30  # settings are seldom changed, and asking for them takes a connection of its own
FOR_EVER: Final = -1
MISSING_TOPIC: Final = "missing topic"
ADDED_PARTITIONS: Final = "added partitions"
BRING_BACK: Final = (
    "find out who deleted it and whether its records can be brought back; a worker that is started creates it empty, "
    "and then names what is missing"
)


class SourceWatch:
    """Looks at the topics of one engine every WATCH_INTERVAL_S seconds, and soon after each assignment."""

    def __init__(self, engine: LiveEngine) -> None:
        self._engine = engine
        self._soon = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self._missing: set[str] = set()
        self._looks = 0
        self._retention_ms: dict[str, int] = {}
        self.topic_ids: Mapping[str, str] = {}
        """Ids of the topics that agents read, at the last look; empty texts where the broker has none."""

    def start(self) -> None:
        """Begin to look."""
        self._running = asyncio.create_task(self._run(), name="watch over topics")

    async def stop(self) -> None:
        """Look no more."""
        if self._running is not None:
            self._running.cancel()
            await asyncio.wait([self._running])
            self._running = None

    def soon(self) -> None:
        """Something may have changed: look without waiting for the interval to end."""
        self._soon.set()

    def retention_ms(self, topic: str) -> int | None:
        """How long the log keeps records of a topic that agents read, None for ever; as the log was last asked."""
        declared = self._engine.topics[topic].retention_ms
        kept_ms = self._retention_ms.get(topic, FOR_EVER if declared is None else declared)
        return None if kept_ms == FOR_EVER else kept_ms

    async def _run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(WATCH_INTERVAL_S):
                    await self._soon.wait()
            self._soon.clear()
            try:
                await self.look()
            except TransportError as error:
                log.debug("topics cannot be looked at: %s", error)  # who needs the broker says so
            except Exception:
                log.exception("topics cannot be looked at")

    async def look(self) -> None:
        """Compare the topics with what is remembered of them; raises TransportError."""
        engine = self._engine
        specs = engine.topic_specs()
        counts = await engine.broker.topics()
        self._report_missing({spec.name for spec in specs}, counts)
        await self._look_at_partitions(specs, counts)
        ids = self.topic_ids = await engine.broker.topic_ids({topic.name for topic in engine.agents.values()})
        for task in list(engine.tasks.values()):
            if task.life.is_running():
                await task.losses.watch(ids)
                await watch_changelogs(task.store, task.number, engine)
                task.work.keep_positions()
                task.work.commit_soon()
        if self._looks % LOOKS_PER_RETENTION == 0:
            await self._read_retention()
        self._looks += 1

    async def _read_retention(self) -> None:
        names = [topic.name for topic in self._engine.agents.values()]
        facts = await self._engine.broker.facts(names)
        for name, topic in facts.topics.items() if facts is not None else ():
            if (kept := topic.settings.get("retention.ms")) is not None:
                self._retention_ms[name] = int(kept)

    def _report_missing(self, names: set[str], counts: Mapping[str, int]) -> None:
        """Report what was missing the last time as well: a broker that has just started knows few topics."""
        missing = names - counts.keys()
        for name in names:
            key: FaultKey = (MISSING_TOPIC, name)
            if name in missing and name in self._missing:
                self._engine.faults.report(
                    key, Fault(MISSING_TOPIC, f"topic {name} does not exist any more", BRING_BACK)
                )
            elif name not in missing:
                self._engine.faults.clear(key)
        self._missing = missing

    async def _look_at_partitions(self, specs: Sequence[TopicSpec], counts: Mapping[str, int]) -> None:
        added = {
            spec.name: range(spec.partitions, counts[spec.name])
            for spec in specs
            if counts.get(spec.name, 0) > spec.partitions
        }
        bounds = await self._engine.broker.bounds([(name, n) for name, numbers in added.items() for n in numbers])
        for spec in specs:
            key: FaultKey = (ADDED_PARTITIONS, spec.name)
            if spec.name not in added:
                self._engine.faults.clear(key)
                continue
            unread = sum(end - start for (name, _), (start, end) in bounds.items() if name == spec.name)
            self._engine.faults.report(key, added_partitions(spec, counts[spec.name], unread))


def added_partitions(spec: TopicSpec, found: int, unread: int) -> Fault:
    """The fault of a topic with more partitions than the application's, in which `unread` offsets are used."""
    detail = (
        f"{spec.name} has {found} partitions, this application uses the first {spec.partitions}: "
        f"{unread} offsets in the others are read by no agent"
    )
    advice = (
        f"let all producers write to partitions 0 to {spec.partitions - 1} (murmur2 of the key modulo "
        f"{spec.partitions}), and send the records of the others again that way; Kafka cannot take partitions away, "
        'and nothing has to be deleted: see "Partitions were added" in docs/operations.md'
    )
    return Fault(ADDED_PARTITIONS, detail, advice)
