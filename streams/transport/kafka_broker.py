"""Apache Kafka behind the engine's ports."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError, TopicAlreadyExistsError, for_code

from streams.settings import Settings
from streams.transport.base import (
    Broker,
    LogFacts,
    Outgoing,
    PartitionsMismatch,
    Position,
    Reader,
    TopicSpec,
    TransactionalProducer,
    TransportError,
)
from streams.transport.kafka_connection import PRODUCE_BATCH_BYTES, REQUEST_BYTES_MAX, connection_options
from streams.transport.kafka_diagnosis import diagnose
from streams.transport.kafka_facts import INTERNAL_TOPICS, read_facts
from streams.transport.kafka_producer import KafkaTransactions, build_batches
from streams.transport.kafka_reader import KafkaReader
from streams.transport.kafka_topic_ids import read_topic_ids

BATCH_BYTES = 1 << 10  # Kafka counts the batch around a record as well
REPLICAS_TO_SPARE = 3  # with as many, two have each acknowledged record, and one may be away
SEGMENT_MS = 24 * 3600 * 1000
COORDINATOR_ATTEMPTS = 50
COORDINATOR_PAUSE_S = 0.2


class KafkaBroker(Broker):
    """Apache Kafka as the engine and the web view see it."""

    commits_in_loop = False

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.options = connection_options(settings)
        self._producer: AIOKafkaProducer | None = None
        self._consumer: AIOKafkaConsumer | None = None

    async def start(self) -> None:
        """Connect the producer for publishing and a client for offsets."""
        if self._producer is not None:
            return
        producer = AIOKafkaProducer(
            **self.options,
            enable_idempotence=True,
            acks="all",
            linger_ms=0,
            max_batch_size=PRODUCE_BATCH_BYTES,
            max_request_size=REQUEST_BYTES_MAX,
        )
        # read_uncommitted: see end_offset.
        consumer = AIOKafkaConsumer(**self.options, group_id=None, isolation_level="read_uncommitted")
        try:
            await producer.start()
            await consumer.start()
        except KafkaError as error:
            await producer.stop()
            await consumer.stop()
            raise await diagnose(self.settings, self.options, error) from error
        self._producer, self._consumer = producer, consumer

    async def stop(self) -> None:
        """Disconnect."""
        for client in (self._producer, self._consumer):
            if client is not None:
                await client.stop()
        self._producer = self._consumer = None

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create what is missing and compare the sizes of what is there."""
        admin = AIOKafkaAdminClient(**self.options)
        try:
            await admin.start()
            existing = await self.topics()
            missing = [self._new_topic(topic) for topic in topics if topic.name not in existing]
            if missing:
                response = await admin.create_topics(missing)
                for name, code, *rest in response.topic_errors:
                    error = for_code(code)
                    if code and error is not TopicAlreadyExistsError:
                        raise TransportError(f"cannot create topic {name}: {error.__name__} {rest}")
            await self._check_partitions(admin, topics)
            if missing:
                await self._wait_until_there(missing)
        except KafkaError as error:
            raise TransportError(f"cannot create topics: {error}") from error
        finally:
            await admin.close()

    def _new_topic(self, topic: TopicSpec) -> NewTopic:
        config = {
            "max.message.bytes": str(topic.record_bytes_max + BATCH_BYTES),
            "unclean.leader.election.enable": "false",
        }
        if self.settings.replication >= REPLICAS_TO_SPARE:
            config["min.insync.replicas"] = "2"
        if topic.compacted:
            retention_ms = str(int(self.settings.delete_retention * 1000))
            config |= {"cleanup.policy": "compact", "delete.retention.ms": retention_ms, "segment.ms": str(SEGMENT_MS)}
        else:
            config |= {"retention.ms": str(-1 if topic.retention_ms is None else topic.retention_ms)}
        return NewTopic(topic.name, topic.partitions, self.settings.replication, topic_configs=config)

    async def _wait_until_there(self, created: Sequence[NewTopic]) -> None:
        """A topic is announced before its partitions can be read; consumers would report that as errors."""
        tps = [TopicPartition(topic.name, number) for topic in created for number in range(topic.num_partitions)]
        await self._client().end_offsets(tps)

    async def _check_partitions(self, admin: AIOKafkaAdminClient, topics: Sequence[TopicSpec]) -> None:
        described = {topic["topic"]: topic for topic in await admin.describe_topics([topic.name for topic in topics])}
        for topic in topics:
            found = len(described[topic.name]["partitions"])
            if found not in (0, topic.partitions):  # 0: created a moment ago, not known everywhere yet
                raise PartitionsMismatch(
                    f"topic {topic.name} has {found} partitions, this application needs {topic.partitions}: "
                    f"set ORDERS_PARTITIONS={found} if all topics have {found}, or delete the topic and start again"
                )

    async def topics(self) -> Mapping[str, int]:
        """All topics with their number of partitions."""
        consumer = self._client()
        try:
            await consumer._client.force_metadata_update()
            names = await consumer.topics()
        except KafkaError as error:
            raise TransportError(f"cannot list the topics: {error}") from error
        return {name: len(consumer.partitions_for_topic(name) or ()) for name in names}

    async def topic_ids(self, names: Collection[str]) -> Mapping[str, str]:
        """Ids of those of these topics that exist."""
        return await read_topic_ids(self._client()._client, names)

    async def bounds(self, partitions: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], tuple[int, int]]:
        """First and next offset of each of these partitions, open transactions included."""
        client, tps = self._client(), [TopicPartition(topic, number) for topic, number in partitions]
        try:
            starts, ends = await client.beginning_offsets(tps), await client.end_offsets(tps)
        except KafkaError as error:
            raise TransportError(f"cannot read where topics begin and end: {error}") from error
        return {(tp.topic, tp.partition): (starts[tp], ends[tp]) for tp in tps}

    async def facts(self, topics: Sequence[str]) -> LogFacts:
        """Replicas and settings of these topics, and of the ones that Kafka itself keeps."""
        return await read_facts(self.options, (*topics, *INTERNAL_TOPICS))

    def producer(self, partition: int) -> TransactionalProducer:
        """A producer for a partition number, not yet started."""
        return KafkaTransactions(self.settings, partition)

    def reader(self, partition: int, topics: Sequence[str]) -> Reader:
        """A reader of a partition number, not yet started."""
        return KafkaReader(self.settings, partition, topics)

    async def end_offset(self, topic: str, partition: int) -> int:
        """The next offset to be written, open transactions included.

        A commit is answered before its markers are written: for a moment the end that read_committed readers see is
        still before the records that were committed.
        """
        tp = TopicPartition(topic, partition)
        try:
            return int((await self._client().end_offsets([tp]))[tp])
        except KafkaError as error:
            raise TransportError(f"cannot read the end of {topic}/{partition}: {error}") from error

    async def publish(self, topic: str, partition: int, records: Sequence[Outgoing]) -> list[Position]:
        """Write records with acks=all, idempotently; returns when the broker has them."""
        producer = self._producer
        if producer is None:
            raise TransportError("Kafka is not connected yet")
        try:
            sent = [
                (await producer.send_batch(batch, topic, partition=partition), batch.record_count())
                for batch in build_batches(producer, records)
            ]
            return [
                Position(topic, partition, first + index)
                for future, count in sent
                for first in ((await future).offset,)
                for index in range(count)
            ]
        except KafkaError as error:
            raise TransportError(f"Kafka did not take a record of {topic}: {error}") from error

    async def committed(self, offsets: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """The group's committed offsets."""
        admin = AIOKafkaAdminClient(**self.options)
        try:
            await admin.start()
            tps = [TopicPartition(topic, number) for topic, number in offsets]
            found = await self._group_offsets(admin, tps)
        except KafkaError as error:
            raise TransportError(f"cannot read the group's offsets: {error}") from error
        finally:
            await admin.close()
        return {(tp.topic, tp.partition): meta.offset for tp, meta in found.items() if meta.offset >= 0}

    async def _group_offsets(self, admin: AIOKafkaAdminClient, tps: Sequence[TopicPartition]) -> Mapping[Any, Any]:
        """A broker that has just started knows no coordinator for a moment."""
        for _ in range(COORDINATOR_ATTEMPTS):
            try:
                return await admin.list_consumer_group_offsets(self.settings.app_id, partitions=tps)  # type: ignore[no-any-return]
            except GroupCoordinatorNotAvailableError:
                await asyncio.sleep(COORDINATOR_PAUSE_S)
        return await admin.list_consumer_group_offsets(self.settings.app_id, partitions=tps)  # type: ignore[no-any-return]

    def _client(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise TransportError("Kafka is not connected yet")
        return self._consumer
