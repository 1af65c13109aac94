"""An engine without Faust that is fed as by a driver, with what comes next in the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from engine.faust.embedded import report_damage
from engine.log.embedded.broker import EmbeddedBroker
from engine.log.ports import Reader, Record, TransportError
from engine.partition.task import PartitionTask
from engine.work.life import StaleBatch
from streams.settings import Settings
from tests.apps import HandFed, Tally, make_settings, process, wait_until

HEALING_S = 10.0
FETCH = 2


def fed_settings(data_dir: Path, broker: str = "memory://") -> Settings:
    """Settings of an engine that comes back at once; on a shared Kafka it has as many partitions as all others."""
    partitions = 4 if broker.startswith("kafka") else 1
    return make_settings(broker, data_dir, partitions=partitions, restart_backoff=0.001, restart_backoff_max=0.002)


class Fed(HandFed):
    """An engine that is fed as by a driver: with what comes next in the log, in each life of its partition anew."""

    def __init__(self, settings: Settings, tally: Tally) -> None:
        super().__init__(settings, [tally.service])
        self.engine.ownership.topics = frozenset()  # as in tests.apps.start
        self.tally = tally
        self.end = 0  # of what was written
        self._reader: Reader | None = None
        self._reader_at = -1
        if isinstance(self.engine.broker, EmbeddedBroker):
            report_damage(self.engine.broker.damaged, self.engine, lambda: None)

    async def feed(self) -> None:
        """Feed one fetch after the other, until it is cancelled."""
        topic = self.tally.source.name
        while True:
            await asyncio.sleep(0.001)
            task = self.engine.tasks.get(0)
            if task is None or not task.life.is_running():
                continue
            offset = task.dispatch.fetch_offset(topic)
            records = await self._read(offset)
            if (
                self.engine.tasks.get(0) is not task
                or not task.life.is_running()
                or task.dispatch.fetch_offset(topic) != offset
            ):
                continue
            if not records:
                self.engine.polled(())
                continue
            await self._hand_over(task, records)

    async def _hand_over(self, task: PartitionTask, records: Sequence[Record]) -> None:
        fetched = task.dispatch.fetched(self.tally.source.name, records, records[-1].offset + 1)
        try:
            await process(fetched, Tally.AGENT, self.tally.handle)
        except StaleBatch:
            return
        except Exception as error:  # as the agents' feed does
            task.life.fail(error)

    async def _read(self, offset: int) -> Sequence[Record]:
        """What comes next in the log, nothing where it cannot be read now."""
        broker, topic = self.engine.broker, self.tally.source.name
        try:
            if isinstance(broker, EmbeddedBroker):
                return broker.read(topic, 0, offset)[0][:FETCH]
            if self._reader is None:
                self._reader = broker.reader(0, [topic])
                await self._reader.start()
            if offset != self._reader_at:
                self._reader.seek(topic, offset)
            records, self._reader_at = (await self._reader.fetch()).get(topic, ((), offset))
            return records
        except TransportError:
            return ()

    async def publish(self, keys: Sequence[str], value: str) -> None:
        """Write a value of each key; raises TransportError."""
        values: list[Any] = [(key.encode(), value.encode(), ()) for key in keys]
        positions = await self.engine.broker.publish(self.tally.source.name, 0, values)
        self.end = positions[-1].offset + 1

    async def write_all(self, keys: Sequence[str], value: str) -> None:
        """Write a value of each key, and wait until it is committed."""
        await self.publish(keys, value)
        await self.is_done()

    async def stop(self) -> None:
        """Stop the engine."""
        if self._reader is not None:
            await self._reader.close()
        await self.engine.stop()

    async def is_done(self) -> None:
        """Wait until everything that was written is committed."""
        await wait_until(self.has_all, "the partition has got over it", HEALING_S)

    def has_all(self) -> bool:
        """Whether everything that was written is committed."""
        task = self.engine.tasks.get(0)
        return (
            self.engine.is_ready()
            and task is not None
            and (task.reached(Tally.AGENT, self.tally.source.name) >= self.end)
        )


@asynccontextmanager
async def fed(data_dir: Path, broker: str = "memory://") -> AsyncIterator[Fed]:
    """Give an engine that is fed, and owns nothing yet."""
    async with living(fed_settings(data_dir, broker), Tally()) as fed:
        yield fed


@asynccontextmanager
async def living(settings: Settings, tally: Tally) -> AsyncIterator[Fed]:
    """Give one life of an engine that is fed, and owns nothing yet."""
    fed = Fed(settings, tally)
    feeding: asyncio.Task[None] | None = None
    try:
        await fed.engine.start(fed.hand)
        feeding = asyncio.create_task(fed.feed())
        yield fed
        assert not feeding.done()
    finally:
        if feeding is not None:
            feeding.cancel()
        await fed.stop()
