"""The transports memory:// and embedded://: Faust's consumer on the embedded log."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from faust.types import TP

from engine.faust.driver import EngineTransport, FetchConsumer
from engine.health.faults import Fault, FaultKey
from engine.log.embedded.broker import EmbeddedBroker
from engine.log.embedded.damage import LogDamage
from engine.log.embedded.errors import LogError, LogReadFailed
from engine.log.ports import Record, TransportError

if TYPE_CHECKING:
    from engine.partition.engine import Engine

WRITE_ADVICE = "the worker tries again and goes on by itself when the disk does"
UNWRITABLE: FaultKey = ("disk", "log")


def report_damage(damaged: LogDamage, engine: Engine, wake: Callable[[], None]) -> None:
    """Report parts of the log that cannot be read, which stand still until they can be; `wake` is called then."""
    check = engine.settings.application.command("log check")
    advice = (
        f"stop the worker, check the disk with its own tools, look at all of the log with {check}, and restore the "
        "data folder from a backup; all goes on by itself when it can be read again, as after a loose cable"
    )

    def found(topic: str, partition: int, damage: LogReadFailed) -> None:
        engine.metrics.storage_errors += 1
        detail = f"{topic}/{partition} cannot be read, so partition {partition} stands still: {damage}"
        engine.faults.report(("disk", topic, partition), Fault("disk", detail, advice, partition))

    def gone(topic: str, partition: int) -> None:
        engine.faults.clear(("disk", topic, partition))
        wake()

    def unwritable(error: LogError) -> None:
        engine.metrics.storage_errors += 1
        engine.faults.report(UNWRITABLE, Fault("disk", f"nothing is accepted or committed: {error}", WRITE_ADVICE))

    damaged.on_found, damaged.on_gone = found, gone
    damaged.on_unwritable, damaged.on_writable = unwritable, lambda: engine.faults.clear(UNWRITABLE)


class EmbeddedConsumer(FetchConsumer):
    """The only member of its group: it owns all partitions of what it subscribes to."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.broker: EmbeddedBroker = self.engine.broker  # type: ignore[assignment]
        self._assigned: set[TP] = set()
        self._positions: dict[TP, int] = {}
        self._grown = asyncio.Event()
        self._grown.set()
        report_damage(self.broker.damaged, self.engine, self._grown.set)

    async def on_start(self) -> None:
        """Open the log and listen to it."""
        await self.engine.start(self)
        self.broker.log.subscribe(lambda grown: self._grown.set())

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Own every partition of `topics`; goes through Faust's rebalance like a group of one."""
        self._tps = {TP(topic, number) for topic in topics for number in range(self.engine.settings.partitions)}
        self.add_future(self._rebalance())

    async def _rebalance(self) -> None:
        self.app.on_rebalance_start()
        await self.on_partitions_revoked(set(self._assigned))
        self._assigned = set(self._tps)
        self._positions = dict.fromkeys(self._assigned, 0)
        self.app.consumer_generation_id += 1
        await self.on_partitions_assigned(self._assigned, self.app.consumer_generation_id)

    def take(self, partitions: Sequence[TP]) -> Mapping[TP, Sequence[Record]]:
        """Read the log."""
        self._grown.clear()
        log, taken = self.broker.log, dict[TP, Sequence[Record]]()
        for tp in partitions:
            position = self._positions[tp]
            if not log.start_offset(*tp) <= position <= log.end_offset(*tp):
                self.engine.out_of_range(*tp)
                continue
            try:
                records, self._positions[tp] = self.broker.read(tp.topic, tp.partition, position)
            except TransportError:
                continue  # damaged: it stands still, and a fault says why
            if records:
                taken[tp] = records
        return taken

    async def wait_for_records(self) -> None:
        """Wait for an append."""
        await self._grown.wait()

    def position_of(self, tp: TP) -> int | None:
        """The next offset to be read."""
        return self._positions.get(tp)

    def seek_now(self, tp: TP, offset: int) -> None:
        """Go on reading at `offset`."""
        self._positions[tp] = offset

    def assignment(self) -> set[TP]:
        """What this consumer owns."""
        return self._assigned

    def highwater(self, tp: TP) -> int:
        """The next offset to be written."""
        return self.broker.log.end_offset(tp.topic, tp.partition)

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """The next offsets to be written."""
        return {tp: self.highwater(tp) for tp in partitions}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """The first offsets there are."""
        return {tp: self.broker.log.start_offset(tp.topic, tp.partition) for tp in partitions}

    def topic_partitions(self, topic: str) -> int | None:
        """How many partitions `topic` has."""
        config = self.broker.log.topics().get(topic)
        return config.partitions if config else None

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        """Nothing: the engine creates all topics at start."""


class Transport(EngineTransport):
    """Faust's entry to memory:// and embedded://."""

    Consumer = EmbeddedConsumer
    driver_version = "embedded log 1"
