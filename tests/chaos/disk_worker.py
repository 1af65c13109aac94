"""A worker whose disk is not to be trusted: written to, read, started again, and right in the end."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Final

import msgspec

from engine.declare.table import Table
from engine.declare.unit_of_work import UnitOfWork
from engine.log.embedded import opening as log_opening
from engine.log.ports import Record
from engine.partition.engine import Engine, PartitionNotHere
from engine.rebuilds.loop import RebuildUnderWay
from engine.store import store
from tests.apps import Tally
from tests.chaos.disk_values import SAID, Values
from tests.feeding import Fed, fed_settings, living

KEYS: Final = [f"key-{number:02}" for number in range(40)]
KEYS_AT_ONCE: Final = 6
WRITES: Final = 3
VALUE_BYTES: Final = 40
HEALING_S: Final = 60.0
_BUFFER_BYTES: Final = 64 << 10


def use_small_buffers() -> None:
    """Let memory tables be written, and tables be merged, after a few records, in this process from now on."""
    store.WRITE_BUFFER_BYTES = _BUFFER_BYTES
    log_opening._WRITE_BUFFER_BYTES = _BUFFER_BYTES  # type: ignore[misc]


class Mark(msgspec.Struct, frozen=True):
    """A mark that is to be swept out at once."""

    marked_at_ms: int = 0


class SweptTally(Tally):
    """A tally that can be rebuilt, and sets a mark for each record that a sweep removes."""

    def __init__(self) -> None:
        super().__init__()
        self.marks: Table[str, Mark] = Table("marks", Mark, marked_at_ms=lambda row: row.marked_at_ms)
        self.service.tables = (*self.service.tables, self.marks)
        del self.service.agents[self.AGENT]
        self.service.projection(self.AGENT, self.source, self.table, self.marks, deferred=False).on_record(self.handle)

    def handle(self, record: Record, work: UnitOfWork) -> str:
        """Handle one record as the engine asks for it."""
        work.put(self.marks, str(record.offset), Mark())
        return super().handle(record, work)


class StillDown(AssertionError):
    """Something that should have healed has not."""


class DiskWorker:
    """One worker with partition 0, started as often as it has to be; `values` are what it was given."""

    def __init__(self, broker: str, folder: Path, source: random.Random) -> None:
        self.settings = fed_settings(folder, broker)
        self.tally = SweptTally()
        self.values = Values()
        self.starts = 0
        self._source = source
        self._generation = 0
        self._healed = itertools.count()
        self._life = AsyncExitStack()
        self._fed: Fed | None = None

    @property
    def fed(self) -> Fed:
        """The worker that runs; raises PartitionNotHere where none does."""
        if self._fed is None:
            raise PartitionNotHere("no worker runs")
        return self._fed

    @property
    def engine(self) -> Engine:
        """Its engine; raises PartitionNotHere."""
        return self.fed.engine

    async def begin(self) -> None:
        """Start, and fill log and store."""
        await self.start()
        await self.values.write(self.fed, KEYS, "begin")
        await self.until_right("the beginning")

    async def start(self) -> None:
        """Start; raises TransportError where that cannot be done."""
        self.starts += 1
        self._fed = await self._life.enter_async_context(living(self.settings, self.tally))
        await self.assign([0])

    async def stop(self) -> None:
        """Stop, if it runs."""
        life, self._life, self._fed = self._life, AsyncExitStack(), None
        await life.aclose()

    async def assign(self, numbers: list[int]) -> None:
        """Own these partition numbers from now on."""
        self._generation += 1
        engine = self.engine
        await engine.revoked()
        await engine.assigned(numbers, self._generation)

    async def use(self, value: str, what: str) -> None:
        """Write and read, as far as that is possible; what is read has to be right."""
        for part in range(WRITES):
            with contextlib.suppress(*SAID):
                keys = self._source.sample(KEYS, KEYS_AT_ONCE)
                await self.values.write(self.fed, keys, f"{value}-{part}".ljust(VALUE_BYTES, "."))
                self.values.check_read(self.fed, what)
                await asyncio.sleep(0.02)
                self.values.check_read(self.fed, what)

    async def rebuild(self) -> None:
        """Begin to make the rows anew from the log."""
        engine = self.engine
        with contextlib.suppress(RebuildUnderWay):
            rebuilds = engine.task(0).rebuilds
            await rebuilds.begin(engine.projections[Tally.AGENT], "again", False, int(time.time() * 1000))

    async def until_right(self, what: str, patience_s: float = HEALING_S) -> None:
        """Wait until all goes on, and check that all of it is right.

        Raises AssertionError when something is wrong, and StillDown when it does not go on in time.
        """
        deadline = time.monotonic() + patience_s
        while True:
            try:
                await self._run_on(deadline)
                await self.values.check_all(self.fed, what)
                return
            except SAID as error:
                if time.monotonic() > deadline:
                    raise StillDown(f"{what}: not healed after {patience_s:.0f} s: {error}") from error
                await asyncio.sleep(0.02)

    async def _run_on(self, deadline: float) -> None:
        """Start a worker that has ended, and wait until it has handled all there is and nothing is the matter."""
        if self._fed is None or self._fed.engine.fatal:
            await self.stop()
            await self.start()
        engine = self.engine
        if not engine.numbers:
            await self.assign([0])
        # What has become of a write that failed is known when the next one has succeeded.
        await self.values.write(self.fed, KEYS[:1], f"healed {next(self._healed)}")
        self.fed.end = await engine.broker.end_offset(self.tally.source.name, 0)
        while not self.fed.has_all() or engine.faults.open():
            if engine.fatal or time.monotonic() > deadline:
                raise PartitionNotHere(f"{engine.fatal} {engine.faults.open()}")
            await asyncio.sleep(0.01)
