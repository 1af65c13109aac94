"""Ways in which a log has less than its readers remember: topics deleted, and their beginnings removed."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import msgspec
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, RecordsToDelete

from streams.transport.base import Broker
from streams.transport.embedded_broker import EmbeddedBroker
from streams.transport.kafka_broker import KafkaBroker
from streams.transport.log import Log
from streams.transport.log_layout import encode, partition_key


async def delete_topic(broker: Broker, name: str) -> None:
    """Delete a topic, as an administrator may."""
    if isinstance(broker, KafkaBroker):
        async with _admin(broker) as admin:
            await admin.delete_topics([name])
    else:
        _log_of(broker).delete_topic(name)


async def remove_before(broker: Broker, topic: str, partition: int, offset: int) -> None:
    """Remove the records before `offset`, as retention or DeleteRecords does."""
    if isinstance(broker, KafkaBroker):
        async with _admin(broker) as admin:
            await admin.delete_records({TopicPartition(topic, partition): RecordsToDelete(before_offset=offset)})
        return
    log = _log_of(broker)
    found = log._state.topics[topic]
    state = msgspec.structs.replace(found.partitions[partition], start=offset)
    log._storage.write([(partition_key(found.stored.number, partition), encode(state))])
    found.partitions[partition] = state


def _log_of(broker: Broker) -> Log:
    assert isinstance(broker, EmbeddedBroker)
    return broker.log


@asynccontextmanager
async def _admin(broker: KafkaBroker) -> AsyncIterator[AIOKafkaAdminClient]:
    admin = AIOKafkaAdminClient(**broker.options)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()
