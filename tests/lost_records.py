"""Ways in which a log has less than its readers remember: topics deleted, and their beginnings removed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

import msgspec
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import PolicyViolationError

from streams.transport.base import Broker
from streams.transport.embedded_broker import EmbeddedBroker
from streams.transport.kafka_broker import KafkaBroker
from streams.transport.log import Log
from streams.transport.log_layout import encode, partition_key
from tests.apps import DEADLINE_S

POLICY_ATTEMPTS = 100
POLICY_PAUSE_S = 0.05


async def delete_topic(broker: Broker, name: str) -> None:
    """Delete a topic, as an administrator may."""
    if isinstance(broker, KafkaBroker):
        async with _admin(broker) as admin:
            await admin.delete_topics([name])
    else:
        _log_of(broker).delete_topic(name)


async def remove_before(broker: Broker, topic: str, partition: int, offset: int) -> None:
    """Remove the records before `offset`, as retention or DeleteRecords does.

    Kafka removes none of a compacted topic; its policy is changed for a while, as somebody may have done.
    """
    if isinstance(broker, KafkaBroker):
        async with _admin(broker) as admin:
            to_remove = {TopicPartition(topic, partition): RecordsToDelete(before_offset=offset)}
            try:
                await admin.delete_records(to_remove)
            except PolicyViolationError:
                await _set_policy(admin, topic, "compact,delete")
                await _delete_records(admin, to_remove)
                await _set_policy(admin, topic, "compact")
        return
    remove_from_log(_log_of(broker), topic, partition, offset)


def remove_from_log(log: Log, topic: str, partition: int, offset: int) -> None:
    """Let a partition of the embedded log begin at `offset`."""
    found = log._state.topics[topic]
    state = msgspec.structs.replace(found.partitions[partition], start=offset)
    log._storage.write([(partition_key(found.stored.number, partition), encode(state))])
    found.partitions[partition] = state


async def _set_policy(admin: AIOKafkaAdminClient, topic: str, policy: str) -> None:
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, {"cleanup.policy": policy})])


async def _delete_records(admin: AIOKafkaAdminClient, to_remove: Mapping[TopicPartition, RecordsToDelete]) -> None:
    """Delete records as soon as the broker has heard that it may."""
    for _ in range(POLICY_ATTEMPTS):
        try:
            await admin.delete_records(dict(to_remove))
            return
        except PolicyViolationError:
            await asyncio.sleep(POLICY_PAUSE_S)
    raise AssertionError(f"the policy of {list(to_remove)} was not changed in time")


async def add_partitions(broker: Broker, topic: str, count: int) -> None:
    """Give a topic of Kafka more partitions."""
    assert isinstance(broker, KafkaBroker)
    async with _admin(broker) as admin:
        await admin.create_partitions({topic: NewPartitions(count)})


async def until_gone(broker: Broker, topic: str) -> None:
    """Wait until a topic that was deleted is gone."""
    deadline = time.monotonic() + DEADLINE_S
    while topic in await broker.topic_ids([topic]):
        assert time.monotonic() < deadline, f"{topic} is still there"
        await asyncio.sleep(0.05)


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
