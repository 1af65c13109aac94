"""An engine without Faust that is fed as by a driver, with what comes next in the log."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from streams.engine.batch import Batch, StaleBatch
from tests.apps import HandFed, Tally, make_settings, wait_until

HEALING_S = 10.0
FETCH = 2


class Fed(HandFed):
    """An engine that is fed as by a driver: with what comes next in the log, in each life of its partition anew."""

    def __init__(self, data_dir: Path, tally: Tally) -> None:
        settings = make_settings("memory://", data_dir, partitions=1, restart_backoff=0.001, restart_backoff_max=0.002)
        super().__init__(settings, [tally.service])
        self.tally = tally
        self.written = 0

    async def feed(self) -> None:
        """Feed one fetch after the other, until it is cancelled."""
        topic, broker = self.tally.source.name, self.engine.broker
        while True:
            await asyncio.sleep(0.001)
            task = self.engine.tasks.get(0)
            if task is None or not task.is_running():
                continue
            records, _ = broker.log.read(topic, 0, task.fetch_offset(topic))  # type: ignore[attr-defined]
            if not records:
                self.engine.polled(())
                continue
            fetched = task.fetched(topic, records[:FETCH], records[:FETCH][-1].offset + 1)
            try:
                await Batch(fetched, Tally.AGENT).process(self.tally.handle)
            except StaleBatch:
                continue
            except Exception as error:  # as the agents' feed does
                task.fail(error)

    async def write_all(self, keys: Sequence[str], value: str) -> None:
        """Write a value of each key, and wait until it is committed."""
        values: list[Any] = [(key.encode(), value.encode(), ()) for key in keys]
        await self.engine.broker.publish(self.tally.source.name, 0, values)
        self.written += len(values)
        await self.is_done()

    async def is_done(self) -> None:
        """Wait until everything that was written is committed."""
        await wait_until(self._has_all, "the partition has got over it", HEALING_S)

    def _has_all(self) -> bool:
        task = self.engine.tasks.get(0)
        return (
            self.engine.is_ready()
            and task is not None
            and (task.reached(Tally.AGENT, self.tally.source.name) >= self.written)
        )


@asynccontextmanager
async def fed(data_dir: Path) -> AsyncIterator[Fed]:
    fed = Fed(data_dir, Tally())
    await fed.engine.start(fed.hand)
    feeding = asyncio.create_task(fed.feed())
    try:
        yield fed
        assert not feeding.done()
    finally:
        feeding.cancel()
        await fed.engine.stop()
