"""Apache Kafka behind the engine's ports."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.errors import GroupCoordinatorNotAvailableError, KafkaError, TopicAlreadyExistsError, for_code

from engine.declare.settings import Settings
from engine.log.kafka.clients import ReplaceableClient, describe
from engine.log.kafka.connection import connection_options
from engine.log.kafka.diagnosis import diagnose
from engine.log.kafka.facts import INTERNAL_TOPICS, read_facts
from engine.log.kafka.groups import read_members
from engine.log.kafka.producer import KafkaTransactions, transactional_id
from engine.log.kafka.publisher import KafkaPublisher
from engine.log.kafka.reader import KafkaReader
from engine.log.kafka.topic_ids import read_topic_ids
from engine.log.kafka.transactions.transactions import transaction_client
from engine.log.ports import (
    Broker,
    ClientState,
    LogFacts,
    OpenTransaction,
    Outgoing,
    PartitionsMismatch,
    Position,
    Reader,
    TopicSpec,
    TransactionalProducer,
    TransportError,
)

log = logging.getLogger(__name__)

BATCH_BYTES = 1 << 10  # Kafka counts the batch around a record as well
REPLICAS_TO_SPARE = 3  # with as many, two have each acknowledged record, and one may be away
SEGMENT_MS = 24 * 3600 * 1000
CLOCK_RETENTION_MS = 3600 * 1000
METADATA_TIMEOUT_S = 4.0  # below what those who ask wait: a client that does not answer has to be noticed here
BOUNDS_TIMEOUT_S = 25.0  # of very many partitions
COORDINATOR_ATTEMPTS = 50
COORDINATOR_PAUSE_S = 0.2


class KafkaBroker(Broker):
    """Apache Kafka as the engine and the web view see it."""

    commits_in_loop = False
    lost_end_at = 0.0

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.options = connection_options(settings)
        self._clock_topic = f"{settings.app_id}-clock"
        self._has_clock = False
        self.publisher = KafkaPublisher(self.options, self._explain)
        self._offsets = ReplaceableClient("consumer of metadata and offsets", self._new_consumer, self._explain)
        self._topics: dict[str, int] = {}  # of the application, with their numbers of partitions

    async def _explain(self, failure: Exception) -> TransportError:
        return await diagnose(self.settings, self.options, failure)

    def _new_consumer(self) -> AIOKafkaConsumer:
        # read_uncommitted: see end_offset.
        return AIOKafkaConsumer(**self.options, group_id=None, isolation_level="read_uncommitted")

    async def start(self) -> None:
        """Connect the producer for publishing and a client for offsets."""
        try:
            await self.publisher.client.start()
            await self._offsets.start()
        except TransportError:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Disconnect."""
        await self.publisher.client.close()
        await self._offsets.close()

    @asynccontextmanager
    async def _asking(self, purpose: str, timeout_s: float = METADATA_TIMEOUT_S) -> AsyncIterator[AIOKafkaConsumer]:
        """A consumer that works; failures of the block become "cannot {purpose}", and it is not used again."""
        try:
            async with self._offsets.use(timeout_s) as consumer:
                yield consumer
            self._offsets.health.worked()
        except (KafkaError, TransportError, TimeoutError) as error:
            self._offsets.health.failed(describe(error))
            if isinstance(error, TransportError):
                raise
            raise TransportError(f"cannot {purpose}: {describe(error)}") from error

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create what is missing, unless what is there has another size."""
        self._topics |= {topic.name: topic.partitions for topic in topics}
        admin = AIOKafkaAdminClient(**self.options)
        try:
            await admin.start()
            existing = await self.topics()
            there = [topic for topic in topics if topic.name in existing]
            await _check_partitions(admin, there, self.settings.variable("partitions"))
            missing = [self._new_topic(topic) for topic in topics if topic.name not in existing]
            if missing:
                response = await admin.create_topics(missing)
                for name, code, *rest in response.topic_errors:
                    error = for_code(code)
                    if code and error is not TopicAlreadyExistsError:
                        raise TransportError(f"cannot create topic {name}: {error.__name__} {rest}")
            if self._clock_topic not in existing:
                await self._create_clock(admin)
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
            if topic.retention_ms is not None:
                # A client's clock must not decide when its records are removed.
                config |= {"message.timestamp.type": "LogAppendTime"}
        return NewTopic(topic.name, topic.partitions, self.settings.replication, topic_configs=config)

    async def _create_clock(self, admin: AIOKafkaAdminClient) -> None:
        """A topic in which the broker stamps records: it has no other way to tell the time.

        Everything goes on without it, but clocks are not compared.
        """
        config = {"message.timestamp.type": "LogAppendTime", "retention.ms": str(CLOCK_RETENTION_MS)}
        topic = NewTopic(self._clock_topic, 1, self.settings.replication, topic_configs=config)
        ((_, code, *rest),) = (await admin.create_topics([topic])).topic_errors
        if code and for_code(code) is not TopicAlreadyExistsError:
            log.warning("clocks are not compared: cannot create %s: %s %s", topic.name, for_code(code).__name__, rest)

    async def _wait_until_there(self, created: Sequence[NewTopic]) -> None:
        """A topic is announced before its partitions can be read; consumers would report that as errors."""
        tps = [TopicPartition(topic.name, number) for topic in created for number in range(topic.num_partitions)]
        async with self._asking("see that new topics are there", BOUNDS_TIMEOUT_S) as consumer:
            await consumer.end_offsets(tps)

    async def topics(self) -> Mapping[str, int]:
        """All topics with their number of partitions, as the cluster says now.

        What the client keeps for itself holds only the topics that it was asked about last.
        """
        async with self._asking("list the topics") as consumer:
            cluster = await consumer._client.fetch_all_metadata()
        return {name: len(cluster.partitions_for_topic(name) or ()) for name in cluster.topics()}

    async def topic_ids(self, names: Collection[str]) -> Mapping[str, str]:
        """Ids of those of these topics that exist."""
        async with self._asking("read the ids of topics") as consumer:
            return await read_topic_ids(consumer._client, names)

    async def bounds(self, partitions: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], tuple[int, int]]:
        """First and next offset of each of these partitions, open transactions included."""
        tps = [TopicPartition(topic, number) for topic, number in partitions]
        async with self._asking("read where topics begin and end", BOUNDS_TIMEOUT_S) as consumer:
            starts, ends = await consumer.beginning_offsets(tps), await consumer.end_offsets(tps)
        return {(tp.topic, tp.partition): (starts[tp], ends[tp]) for tp in tps}

    def clients(self) -> Sequence[ClientState]:
        """How the clients do that last as long as the worker."""
        return self.publisher.client.state(), self._offsets.state()

    async def clock_ahead_s(self) -> float | None:
        """By how many seconds this machine's clock is ahead of the broker's, without what the way takes."""
        if not self._has_clock:
            self._has_clock = self._clock_topic in await self.topics()
        if not self._has_clock:
            return None
        before_s = time.time()
        stamp_ms = await self.publisher.stamp(self._clock_topic)
        after_s = time.time()
        if stamp_ms is None:
            return None
        stamp_s = stamp_ms / 1000
        return before_s - stamp_s if stamp_s < before_s else min(0.0, after_s - stamp_s)

    async def facts(self, topics: Sequence[str]) -> LogFacts:
        """Replicas and settings of these topics, and of the ones that Kafka itself keeps."""
        return await read_facts(self.options, (*topics, *INTERNAL_TOPICS))

    def producer(self, partition: int) -> TransactionalProducer:
        """A producer for a partition number, not yet started."""
        return KafkaTransactions(self.settings, transactional_id(self.settings, partition), self._topics, partition)

    def named_producer(self, transactional_id: str, partition: int = 0) -> TransactionalProducer:
        """A producer of this transactional id, not yet started."""
        return KafkaTransactions(self.settings, transactional_id, self._topics, partition)

    def reader(self, partition: int, topics: Sequence[str]) -> Reader:
        """A reader of a partition number, not yet started."""
        return KafkaReader(self.settings, partition, topics)

    async def end_offset(self, topic: str, partition: int) -> int:
        """The next offset to be written, open transactions included.

        A commit is answered before its markers are written: for a moment the end that read_committed readers see is
        still before the records that were committed.
        """
        tp = TopicPartition(topic, partition)
        async with self._asking(f"read the end of {topic}/{partition}") as consumer:
            return int((await consumer.end_offsets([tp]))[tp])

    async def publish(self, topic: str, partition: int, records: Sequence[Outgoing]) -> list[Position]:
        """Write records with acks=all, idempotently; returns when the broker has them."""
        return await self.publisher.publish(topic, partition, records)

    async def members(self, group: str) -> Sequence[str]:
        """Client and machine of each member of a consumer group."""
        return await read_members(self.options, group)

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

    async def open_transactions(self, topics: Mapping[str, int]) -> Sequence[OpenTransaction]:
        """Transactions without markers, as the leaders of partitions know them."""
        async with transaction_client(self.options) as client:
            return await client.open_transactions(topics)

    async def writers(self) -> Mapping[int, int]:
        """The partition number that each producer id writes for, as the coordinators know them."""
        numbers = {transactional_id(self.settings, number): number for number in range(self.settings.partitions)}
        async with transaction_client(self.options) as client:
            return {producer: numbers[name] for producer, name in (await client.producer_ids(numbers)).items()}


async def _check_partitions(admin: AIOKafkaAdminClient, topics: Sequence[TopicSpec], setting: str) -> None:
    """Refuse topics of another size; those with more partitions alone are the business of the watch over topics."""
    described = await admin.describe_topics([topic.name for topic in topics]) if topics else []
    found = {topic["topic"]: len(topic["partitions"]) for topic in described}
    sizes = {found[topic.name] for topic in topics} - {0}  # 0: created a moment ago, not known everywhere yet
    for topic in topics:
        size = found[topic.name]
        if len(sizes) == 1 and size not in (0, topic.partitions):
            raise PartitionsMismatch(
                f"topic {topic.name} has {size} partitions, like all topics there are, and this application is set to "
                f"{topic.partitions}: set {setting}={size}, which they were made with"
            )
        if 0 < size < topic.partitions:
            raise PartitionsMismatch(
                f"topic {topic.name} has {size} partitions, this application needs {topic.partitions}: if it is empty, "
                f"add partitions (kafka-topics.sh --alter --topic {topic.name} --partitions {topic.partitions}); "
                'if it has records, see "Changing the number of partitions" in docs/operations.md first'
            )
