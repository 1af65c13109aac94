"""The watch for transactions that hang while a worker runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import Final

from engine.declare.settings import Settings
from engine.health.faults import Fault, FaultKey
from engine.log.ports import OpenTransaction, TransportError
from engine.partition.live_engine import LiveEngine
from engine.positions.settling import KIND, TOOL, abort_command, servers

log = logging.getLogger(__name__)

GRACE_S: Final = 10.0  # Kafka looks for transactions that take too long every 10 s


def describe(settings: Settings, found: OpenTransaction, number: int | None = None) -> Fault:
    """The fault of a transaction whose producer is not one of ours, or belongs to a worker that is not there."""
    server = servers(settings)
    where = f"--topic {found.topic} --partition {found.partition}"
    advice = (
        f"readers wait behind it; see who wrote it with `{TOOL} {server} describe-producers {where}` and "
        f"`{TOOL} {server} list`. A worker of this application settles its own when it starts: start the one that "
        f"is missing. Another program has to end it; once that will never happen, `{abort_command(settings, found)}` "
        "lets readers go on, and that program has to send its records again"
    )
    return Fault(KIND, str(found), advice, number)


class HangingWatch:
    """Looks, as often as a transaction may take, for transactions that have taken far too long.

    One of a partition task that runs here ends that task: its next life settles it. Any other in a partition that this
    worker owns is a fault until it is gone.
    """

    def __init__(self, engine: LiveEngine) -> None:
        self._engine = engine
        self._seen: dict[tuple[str, int, int, int], float] = {}  # since when, monotonic
        self._faults: set[FaultKey] = set()
        self._running: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Look from now on."""
        self._running = asyncio.create_task(self._watch(), name="watch for hanging transactions")

    def stop(self) -> None:
        """Look no more."""
        if self._running is not None:
            self._running.cancel()
            self._running = None

    async def _watch(self) -> None:
        settings = self._engine.settings
        while True:
            await asyncio.sleep(settings.transaction_timeout)
            try:
                await self.look(settings.transaction_timeout + GRACE_S)
            except TransportError as error:
                log.debug("cannot look for hanging transactions: %s", error)

    async def look(self, patience_s: float) -> None:
        """Find what has been open at every look for `patience_s` seconds."""
        engine, now = self._engine, time.monotonic()
        topics = {spec.name: spec.partitions for spec in engine.topic_specs()}
        found = await engine.broker.open_transactions(topics)
        self._seen = {one.key: self._seen.get(one.key, now) for one in found}
        await self._report([one for one in found if now - self._seen[one.key] >= patience_s])

    async def _report(self, lasting: Sequence[OpenTransaction]) -> None:
        engine, still = self._engine, set[FaultKey]()
        writers = await engine.broker.writers() if lasting else {}
        for found in lasting:
            number = writers.get(found.producer_id, -1)
            if number in engine.numbers:
                if (writer := engine.tasks.get(number)) is not None and writer.life.is_running():
                    writer.life.fail(TransportError(f"{found}; the next start settles it"))
            elif found.partition in engine.numbers:
                key: FaultKey = KIND, found.topic, found.partition, found.producer_id
                engine.faults.report(key, describe(engine.settings, found, found.partition))
                still.add(key)
        for key in self._faults - still:
            engine.faults.clear(key)
        self._faults = still
