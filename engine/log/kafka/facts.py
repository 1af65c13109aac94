"""How a Kafka cluster keeps topics, as far as it can lose something: replicas and settings, for the doctor."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, NotControllerError, RequestTimedOutError

from engine.log.ports import LogFacts, TopicFacts, TransportError

INTERNAL_TOPICS: Final = ("__consumer_offsets", "__transaction_state")
CONTROLLER_TIMEOUT_S: Final = 3.0  # it answers within milliseconds, or not at all


async def read_facts(options: Mapping[str, Any], topics: Iterable[str]) -> LogFacts:
    """Replicas and settings of those of `topics` that exist, and of one broker; settings are empty where they are
    not to be had, as for want of the right to read them.
    """
    admin = AIOKafkaAdminClient(**options)
    try:
        await admin.start()
        wanted = set(topics)
        if not await controller_answers(admin):
            return LogFacts(0, {}, {}, has_controller=False)
        brokers = [broker["node_id"] for broker in (await admin.describe_cluster())["brokers"]]
        found = [topic for topic in await admin.describe_topics() if topic["topic"] in wanted]
        resources = [ConfigResource(ConfigResourceType.TOPIC, topic["topic"]) for topic in found]
        # One after the other: answers do not say which of the questions they belong to, except by names.
        of_topics = await _settings(admin, resources) if resources else {}
        of_broker = await _settings(admin, [ConfigResource(ConfigResourceType.BROKER, str(brokers[0]))])
    except KafkaError as error:
        raise TransportError(f"cannot read the settings of topics: {error}") from error
    finally:
        await admin.close()
    facts = {topic["topic"]: _facts(topic["partitions"], of_topics.get(topic["topic"], {})) for topic in found}
    return LogFacts(len(brokers), of_broker.get(str(brokers[0]), {}), facts)


async def controller_answers(admin: AIOKafkaAdminClient) -> bool:
    """Whether the cluster has a controller: brokers have to ask it whether a topic could be created, and no more."""
    asked = NewTopic(INTERNAL_TOPICS[0], 1, 1)
    try:
        async with asyncio.timeout(CONTROLLER_TIMEOUT_S):
            answer = await admin.create_topics([asked], validate_only=True)
    except (KafkaError, TimeoutError, AttributeError):  # the last one is aiokafka's when it knows of no controller
        return False
    # Any other error is an answer as well: that it exists already, that we have no right to create it.
    return all(
        code not in (NotControllerError.errno, RequestTimedOutError.errno) for _, code, *_ in answer.topic_errors
    )


async def _settings(admin: AIOKafkaAdminClient, resources: Sequence[ConfigResource]) -> Mapping[str, Mapping[str, str]]:
    """Settings by the name of the topic or broker."""
    return {
        name: {str(entry[0]): str(entry[1]) for entry in entries}
        for answer in await admin.describe_configs(list(resources))
        for code, _, _, name, entries in answer.resources
        if code == 0
    }


def _facts(partitions: Sequence[Mapping[str, Any]], settings: Mapping[str, str]) -> TopicFacts:
    replicas = min((len(partition["replicas"]) for partition in partitions), default=0)
    in_sync = min((len(partition["isr"]) for partition in partitions), default=0)
    return TopicFacts(replicas, in_sync, settings)
