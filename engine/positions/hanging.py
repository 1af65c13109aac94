"""Transactions that hang: settled before a partition starts, and looked for while a worker runs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from engine.declare.settings import Settings
from engine.health.faults import Fault, FaultKey
from engine.log.ports import Broker, OpenTransaction, TransactionalProducer, TransactionHangs, TransportError
from engine.partition.context import EngineContext
from engine.store.changelogs import IDENTITY_KEY, Changelog, doubtful_identity, newest_identities
from engine.store.store import ChangelogMark

if TYPE_CHECKING:
    from engine.partition.engine import Engine

log = logging.getLogger(__name__)

KIND: Final = "transactions"
GRACE_S: Final = 10.0  # Kafka looks for transactions that take too long every 10 s
_TOOL: Final = "kafka-transactions.sh --bootstrap-server"


async def settle(number: int, producer: TransactionalProducer, context: EngineContext) -> None:
    """Settle what earlier writers of a partition left behind; what only a person can settle is a fault, and raised."""
    changelogs = [table.changelog_topic(context.settings.app_id) for table in context.tables.values()]
    key = KIND, number
    try:
        await producer.settle(changelogs, lambda: _distrust_stores(changelogs, number, context.broker))
    except TransactionHangs as error:
        aborts = "; ".join(f"`{_abort(context.settings, found)}`" for found in error.transactions)
        advice = (
            f"Kafka no longer knows its producer, so abort it by hand: {aborts}. Nothing is lost by that: partition "
            f"{number} stands still until then, restores its store from the changelogs, and does the work again"
        )
        context.faults.report(key, Fault(KIND, str(error), advice, number))
        raise
    context.faults.clear(key)


async def _distrust_stores(changelogs: Sequence[str], number: int, broker: Broker) -> None:
    """Let every store of a partition, on any worker, be restored anew: some may have what is going to be aborted."""
    reader = broker.reader(number, changelogs)
    try:
        await reader.start()
        bounds = await reader.bounds()
        shortened = [Changelog(topic, "", *bounds[topic], ChangelogMark()) for topic in bounds if bounds[topic][0]]
        known = await newest_identities(reader, shortened)
    finally:
        await reader.close()
    for topic in changelogs:
        await broker.publish(topic, number, [(IDENTITY_KEY, doubtful_identity(known.get(topic, b"")), ())])


def describe(settings: Settings, found: OpenTransaction, number: int | None = None) -> Fault:
    """The fault of a transaction whose producer is not one of ours, or belongs to a worker that is not there."""
    server = _servers(settings)
    where = f"--topic {found.topic} --partition {found.partition}"
    advice = (
        f"readers wait behind it; see who wrote it with `{_TOOL} {server} describe-producers {where}` and "
        f"`{_TOOL} {server} list`. A worker of this application settles its own when it starts: start the one that "
        f"is missing. Another program has to end it; once that will never happen, `{_abort(settings, found)}` "
        "lets readers go on, and that program has to send its records again"
    )
    return Fault(KIND, str(found), advice, number)


def _abort(settings: Settings, found: OpenTransaction) -> str:
    return (
        f"{_TOOL} {_servers(settings)} abort --topic {found.topic} --partition {found.partition} "
        f"--start-offset {found.start_offset}"
    )


def _servers(settings: Settings) -> str:
    return ",".join(settings.bootstrap_servers)


class HangingWatch:
    """Looks, as often as a transaction may take, for transactions that have taken far too long.

    One of a partition task that runs here ends that task: its next life settles it. Any other in a partition that this
    worker owns is a fault until it is gone.
    """

    def __init__(self, engine: Engine) -> None:
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
                if (writer := engine.tasks.get(number)) is not None and writer.is_running():
                    writer.fail(TransportError(f"{found}; the next start settles it"))
            elif found.partition in engine.numbers:
                key: FaultKey = KIND, found.topic, found.partition, found.producer_id
                engine.faults.report(key, describe(engine.settings, found, found.partition))
                still.add(key)
        for key in self._faults - still:
            engine.faults.clear(key)
        self._faults = still
