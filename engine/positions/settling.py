"""Settling: what earlier writers of a partition left behind in the log is ended before the partition starts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from engine.declare.settings import Settings
from engine.health.faults import Fault
from engine.log.ports import Broker, OpenTransaction, TransactionalProducer, TransactionHangs
from engine.store.changelogs import IDENTITY_KEY, Changelog, doubtful_identity, newest_identities
from engine.store.store import ChangelogMark
from engine.work.context import EngineContext

KIND: Final = "transactions"
TOOL: Final = "kafka-transactions.sh --bootstrap-server"


async def settle(number: int, producer: TransactionalProducer, context: EngineContext) -> None:
    """Settle what earlier writers of a partition left behind; what only a person can settle is a fault, and raised."""
    changelogs = [table.changelog_topic(context.settings.app_id) for table in context.tables.values()]
    key = KIND, number
    try:
        await producer.settle(changelogs, lambda: _distrust_stores(changelogs, number, context.broker))
    except TransactionHangs as error:
        aborts = "; ".join(f"`{abort_command(context.settings, found)}`" for found in error.transactions)
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


def abort_command(settings: Settings, found: OpenTransaction) -> str:
    """The command that ends a transaction by hand."""
    return (
        f"{TOOL} {servers(settings)} abort --topic {found.topic} --partition {found.partition} "
        f"--start-offset {found.start_offset}"
    )


def servers(settings: Settings) -> str:
    """Addresses of the brokers, as Kafka's tools take them."""
    return ",".join(settings.bootstrap_servers)
