"""Ways in which a log has less than its readers remember: topics deleted or made anew, and their beginnings removed.

What an administrator of Kafka does (`configure`, `remove_records`, ...) takes a client, see `admin_of`; the rest takes
either log.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import msgspec
from aiokafka import TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewPartitions, NewTopic, RecordsToDelete
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import PolicyViolationError

from engine.log.embedded.broker import EmbeddedBroker
from engine.log.embedded.layout import encode, partition_key
from engine.log.embedded.log import Log
from engine.log.kafka.broker import KafkaBroker
from engine.log.ports import Broker
from tests.apps import DEADLINE_S

TO_THE_END: Final = -1
OF_THE_TOPIC: Final = 1  # where Kafka has a setting from, when it was set at the topic
PAUSE_S: Final = 0.05


# ---- on Kafka


@asynccontextmanager
async def admin_of(**options: Any) -> AsyncIterator[AIOKafkaAdminClient]:
    """A client for administrators, with the options of aiokafka's."""
    admin = AIOKafkaAdminClient(**options)
    await admin.start()
    try:
        yield admin
    finally:
        await admin.close()


async def configure(admin: AIOKafkaAdminClient, topic: str, settings: Mapping[str, str]) -> None:
    """Give a topic settings; what is not named becomes the broker's default."""
    await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, dict(settings))])


async def settings_of(admin: AIOKafkaAdminClient, topic: str) -> dict[str, str]:
    """The settings that a topic has of its own."""
    (answer,) = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
    ((_, _, _, _, entries),) = answer.resources
    return {name: value for name, value, _, source, *_ in entries if source == OF_THE_TOPIC}


async def make_anew(admin: AIOKafkaAdminClient, topic: str, settings: Mapping[str, str]) -> None:
    """Delete a topic and create it again, with as many partitions and these settings."""
    (described,) = await admin.describe_topics([topic])
    count = len(described["partitions"])
    await admin.delete_topics([topic])
    deadline = time.monotonic() + DEADLINE_S
    while topic in await admin.list_topics():
        assert time.monotonic() < deadline, f"{topic} is still there"
        await asyncio.sleep(PAUSE_S)
    await admin.create_topics([NewTopic(topic, count, 1, topic_configs=dict(settings))])


async def remove_records(admin: AIOKafkaAdminClient, topic: str, partition: int, before: int = TO_THE_END) -> None:
    """Remove the records before an offset, or all, as retention or DeleteRecords does.

    Kafka removes none of a compacted topic; its policy is changed for a while, as somebody may have done.
    """
    to_remove = {TopicPartition(topic, partition): RecordsToDelete(before_offset=before)}
    try:
        await admin.delete_records(to_remove)
    except PolicyViolationError:
        await configure(admin, topic, {"cleanup.policy": "compact,delete"})
        await _once_allowed(admin, to_remove)
        await configure(admin, topic, {"cleanup.policy": "compact"})


async def _once_allowed(admin: AIOKafkaAdminClient, to_remove: Mapping[TopicPartition, RecordsToDelete]) -> None:
    """Remove records as soon as the broker has heard that it may."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            await admin.delete_records(dict(to_remove))
            return
        except PolicyViolationError:
            assert time.monotonic() < deadline, f"the policy of {list(to_remove)} was not changed in time"
            await asyncio.sleep(PAUSE_S)


# ---- on either log


async def delete_topic(broker: Broker, name: str) -> None:
    """Delete a topic, as an administrator may."""
    if isinstance(broker, KafkaBroker):
        async with admin_of(**broker.options) as admin:
            await admin.delete_topics([name])
    else:
        _log_of(broker).delete_topic(name)


async def remove_before(broker: Broker, topic: str, partition: int, offset: int) -> None:
    """Remove the records before `offset`."""
    if isinstance(broker, KafkaBroker):
        async with admin_of(**broker.options) as admin:
            await remove_records(admin, topic, partition, offset)
    else:
        remove_from_log(_log_of(broker), topic, partition, offset)


def remove_from_log(log: Log, topic: str, partition: int, offset: int) -> None:
    """Let a partition of the embedded log begin at `offset`."""
    found = log._state.topics[topic]
    state = msgspec.structs.replace(found.partitions[partition], start=offset)
    log._storage.write([(partition_key(found.stored.number, partition), encode(state))])
    found.partitions[partition] = state


async def add_partitions(broker: Broker, topic: str, count: int) -> None:
    """Give a topic of Kafka more partitions."""
    assert isinstance(broker, KafkaBroker)
    async with admin_of(**broker.options) as admin:
        await admin.create_partitions({topic: NewPartitions(count)})


async def until_gone(broker: Broker, topic: str) -> None:
    """Wait until a topic that was deleted is gone."""
    deadline = time.monotonic() + DEADLINE_S
    while topic in await broker.topic_ids([topic]):
        assert time.monotonic() < deadline, f"{topic} is still there"
        await asyncio.sleep(PAUSE_S)


def _log_of(broker: Broker) -> Log:
    assert isinstance(broker, EmbeddedBroker)
    return broker.log
