"""The transport kafka://: Faust's consumer and the engine's ports on aiokafka, in the worker's own event loop."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import aiokafka.abc
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.consumer.fetcher import FetchError
from aiokafka.errors import (
    InvalidProducerEpoch,
    KafkaError,
    OffsetOutOfRangeError,
    TopicAlreadyExistsError,
    for_code,
)
from aiokafka.errors import ProducerFenced as KafkaFenced
from aiokafka.helpers import create_ssl_context
from aiokafka.producer import sender
from faust.transport.consumer import ensure_TPset
from faust.types import TP

from streams.settings import Settings
from streams.transport.base import (
    Broker,
    Outgoing,
    PartitionsMismatch,
    Position,
    ProducerFenced,
    Reader,
    Record,
    TopicSpec,
    TransactionalProducer,
    TransportError,
)
from streams.transport.driver import FETCH_BYTES_MAX, EngineTransport, FetchConsumer

log = logging.getLogger(__name__)

REQUEST_BYTES_MAX = 5 << 20
TOPIC_RECORD_BYTES_MAX = 4 << 20
PRODUCE_BATCH_BYTES = 1 << 20
REQUEST_TIMEOUT_MS = 20_000
# A transaction that follows the marker of the one before is told to retry; 5 ms instead of 100 keeps p99 low.
RETRY_BACKOFF_MS = 5
# aiokafka waits a constant 20 ms in the one case that is ours all the time: the first request of a transaction that
# follows another. It offers no setting for that. Measured at 200 orders/s: p50 of a commit 20 ms with it, 9 ms without.
sender.BACKOFF_OVERRIDE = RETRY_BACKOFF_MS / 1000
SEGMENT_MS = 24 * 3600 * 1000
RECORDS_PER_SLICE = 500  # building more at once would hold up the event loop
_NO_HEADERS: list[tuple[str, bytes]] = []


def connection_options(settings: Settings) -> dict[str, Any]:
    """What every client needs to reach the brokers."""
    options: dict[str, Any] = {
        "bootstrap_servers": settings.bootstrap_servers,
        "security_protocol": settings.kafka_security_protocol,
        "request_timeout_ms": REQUEST_TIMEOUT_MS,
    }
    if settings.kafka_security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = settings.kafka_sasl_mechanism
        options["sasl_plain_username"] = settings.kafka_sasl_plain_username
        options["sasl_plain_password"] = settings.kafka_sasl_plain_password
    if settings.kafka_security_protocol.endswith("SSL"):
        options["ssl_context"] = _ssl_context(settings)
    return options


def _ssl_context(settings: Settings) -> ssl.SSLContext:
    context: ssl.SSLContext = create_ssl_context(
        cafile=settings.kafka_ssl_cafile or None,
        certfile=settings.kafka_ssl_certfile or None,
        keyfile=settings.kafka_ssl_keyfile or None,
    )
    return context


class KafkaBroker(Broker):
    """Apache Kafka as the engine and the web view see it."""

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
            raise TransportError(
                f"cannot reach Kafka at {', '.join(self.settings.bootstrap_servers)} ({error}); "
                "is it running, and is ORDERS_BROKER right?"
            ) from error
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
        await admin.start()
        try:
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
        config = {"max.message.bytes": str(TOPIC_RECORD_BYTES_MAX)}
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

    def producer(self, partition: int) -> TransactionalProducer:
        """A producer for a partition number, not yet started."""
        return KafkaTransactions(self, partition)

    def reader(self, partition: int, topics: Sequence[str]) -> Reader:
        """A reader of a partition number, not yet started."""
        return KafkaReader(self, partition, topics)

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
                for batch in _build_batches(producer, records)
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
        await admin.start()
        try:
            tps = [TopicPartition(topic, number) for topic, number in offsets]
            found = await admin.list_consumer_group_offsets(self.settings.app_id, partitions=tps)
        except KafkaError as error:
            raise TransportError(f"cannot read the group's offsets: {error}") from error
        finally:
            await admin.close()
        return {(tp.topic, tp.partition): meta.offset for tp, meta in found.items() if meta.offset >= 0}

    def _client(self) -> AIOKafkaConsumer:
        if self._consumer is None:
            raise TransportError("Kafka is not connected yet")
        return self._consumer


class KafkaTransactions(TransactionalProducer):
    """One transactional id per partition number: its start ends what an earlier owner had open (fencing)."""

    def __init__(self, broker: KafkaBroker, partition: int) -> None:
        self._broker = broker
        self._partition = partition
        self._producer: AIOKafkaProducer | None = None
        self._sent: list[tuple[tuple[str, int], int, asyncio.Future[Any]]] = []
        self._offsets_sent: asyncio.Future[None] | None = None

    async def start(self) -> None:
        """Become the writer and fence the one before."""
        settings = self._broker.settings
        self._producer = AIOKafkaProducer(
            **self._broker.options,
            transactional_id=f"{settings.app_id}-{self._partition}",
            transaction_timeout_ms=int(settings.transaction_timeout * 1000),
            acks="all",
            linger_ms=0,
            max_batch_size=PRODUCE_BATCH_BYTES,
            max_request_size=REQUEST_BYTES_MAX,
            retry_backoff_ms=RETRY_BACKOFF_MS,
        )
        await self._call(self._producer.start())

    async def _call(self, operation: Any) -> Any:
        try:
            return await operation
        except (KafkaFenced, InvalidProducerEpoch) as error:
            raise ProducerFenced(f"partition {self._partition}: {error}") from error
        except KafkaError as error:
            raise TransportError(f"partition {self._partition}: {type(error).__name__}: {error}") from error

    @property
    def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise TransportError(f"the producer of partition {self._partition} is not started")
        return self._producer

    async def begin(self) -> None:
        """Open a transaction."""
        self._sent.clear()
        await self._call(self._started.begin_transaction())

    async def send(self, batches: Mapping[tuple[str, int], Sequence[Outgoing]]) -> None:
        """Queue pre-built record batches: a tenth of the cost of one `send` per record.

        The first batch of every destination is queued in one go, so that aiokafka adds all of them to the transaction
        in one request and produces them in another; at a low rate requests are nearly the whole cost of a commit.
        """
        built: dict[tuple[str, int], list[Any]] = {}
        for destination, records in batches.items():
            built[destination] = _build_batches(self._started, records)
            if len(records) >= RECORDS_PER_SLICE:
                await asyncio.sleep(0)
        for destination, pending in built.items():
            await self._queue(destination, pending[0])
        for destination, pending in built.items():
            for batch in pending[1:]:
                await self._queue(destination, batch)

    async def _queue(self, destination: tuple[str, int], batch: Any) -> None:
        topic, partition = destination
        acknowledged = await self._call(self._started.send_batch(batch, topic, partition=partition))
        self._sent.append((destination, batch.record_count(), acknowledged))

    async def send_offsets(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Queue the group's offsets; they travel while the records do."""
        if offsets:
            positions = {TopicPartition(topic, number): offset for (topic, number), offset in offsets.items()}
            self._offsets_sent = asyncio.ensure_future(
                self._started.send_offsets_to_transaction(positions, self._broker.settings.app_id)
            )

    async def commit(self) -> Mapping[tuple[str, int], int]:
        """Wait for all acknowledgements, then make everything since `begin` visible at once."""
        ends: dict[tuple[str, int], int] = {}
        for destination, count, acknowledged in self._sent:
            ends[destination] = (await self._call(acknowledged)).offset + count
        if self._offsets_sent is not None:
            offsets_sent, self._offsets_sent = self._offsets_sent, None
            await self._call(offsets_sent)
        await self._call(self._started.commit_transaction())
        return ends

    async def close(self) -> None:
        """Disconnect; an open transaction is aborted by the broker or by the next owner."""
        producer, self._producer = self._producer, None
        if self._offsets_sent is not None:
            self._offsets_sent.cancel()
        if producer is not None:
            await _stop_abruptly(producer)
        # Nobody waits for these any more; a failed one would be reported as never looked at.
        for _, _, acknowledged in self._sent:
            if acknowledged.done() and not acknowledged.cancelled():
                acknowledged.exception()


async def _stop_abruptly(producer: AIOKafkaProducer) -> None:
    """Stop without waiting for what is still unsent: `stop` alone would try to flush a lost transaction."""
    producer._message_accumulator.fail_all(KafkaFenced())
    try:
        async with asyncio.timeout(5):
            await producer.stop()
    except (TimeoutError, KafkaError):
        await producer.client.close()


def _build_batches(producer: AIOKafkaProducer, records: Sequence[Outgoing]) -> list[Any]:
    """Records as closed batches, each as large as the producer takes; a larger record has a batch of its own."""
    batch = producer.create_batch()
    batches = [batch]
    for key, value, headers in records:
        listed = list(headers) if headers else _NO_HEADERS
        if batch.append(key=key, value=value, timestamp=None, headers=listed) is None:
            batch = producer.create_batch()
            batches.append(batch)
            batch.append(key=key, value=value, timestamp=None, headers=listed)
    for batch in batches:
        batch.close()
    return batches


class KafkaReader(Reader):
    """Reads committed records of one partition number, without a group."""

    def __init__(self, broker: KafkaBroker, partition: int, topics: Sequence[str]) -> None:
        self._broker = broker
        self._tps = [TopicPartition(topic, partition) for topic in topics]
        self._consumer: AIOKafkaConsumer | None = None
        self._positions: dict[TopicPartition, int] = {}

    async def start(self) -> None:
        """Connect."""
        self._consumer = AIOKafkaConsumer(
            **self._broker.options,
            group_id=None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=4 * FETCH_BYTES_MAX,
            fetch_max_wait_ms=100,
        )
        try:
            await self._consumer.start()
            self._consumer.assign(self._tps)
        except KafkaError as error:
            raise TransportError(f"cannot read changelogs: {error}") from error

    async def bounds(self) -> Mapping[str, tuple[int, int]]:
        """First and next offset of each topic."""
        assert self._consumer is not None
        try:
            starts = await self._consumer.beginning_offsets(self._tps)
            ends = await self._consumer.end_offsets(self._tps)
        except KafkaError as error:
            raise TransportError(f"cannot read the bounds of changelogs: {error}") from error
        return {tp.topic: (starts[tp], ends[tp]) for tp in self._tps}

    def seek(self, topic: str, offset: int) -> None:
        """Go on reading at `offset`."""
        assert self._consumer is not None
        tp = next(tp for tp in self._tps if tp.topic == topic)
        self._consumer.seek(tp, offset)
        self._positions[tp] = offset

    async def fetch(self) -> Mapping[str, tuple[Sequence[Record], int]]:
        """The next records of each topic that has any; positions pass transaction markers."""
        assert self._consumer is not None
        try:
            fetched = await self._consumer.getmany(timeout_ms=100)
            moved: dict[str, tuple[Sequence[Record], int]] = {}
            for tp in self._tps:
                position = await self._consumer.position(tp)
                if tp in fetched or position != self._positions.get(tp):
                    moved[tp.topic] = _records(fetched.get(tp, ())), position
                    self._positions[tp] = position
        except OffsetOutOfRangeError as error:
            raise TransportError(f"a changelog lost records that were expected: {error}") from error
        except KafkaError as error:
            raise TransportError(f"cannot read changelogs: {error}") from error
        return moved

    async def close(self) -> None:
        """Disconnect."""
        if self._consumer is not None:
            await self._consumer.stop()


def _records(consumed: Iterable[Any]) -> list[Record]:
    return [Record(r.offset, r.timestamp, r.key, r.value, r.headers) for r in consumed]


def _to_record(tp: TopicPartition, record: Any) -> Record:
    """A record of a fetched batch; takes the place of a method of aiokafka's PartitionRecords."""
    headers = record.headers
    return Record(record.offset, record.timestamp, record.key, record.value, tuple(headers) if headers else ())


class _RebalanceListener(aiokafka.abc.ConsumerRebalanceListener):  # type: ignore[misc]
    """Passes rebalances on to Faust, which passes them on to the engine."""

    def __init__(self, consumer: KafkaConsumer) -> None:
        self._consumer = consumer

    async def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """The group rebalances: everything is revoked (eager protocol)."""
        self._consumer.app.on_rebalance_start()
        await self._consumer.on_partitions_revoked(ensure_TPset(revoked))

    async def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """The group has rebalanced."""
        generation = self._consumer.client._coordinator.generation
        self._consumer.app.consumer_generation_id = generation
        await self._consumer.on_partitions_assigned(ensure_TPset(assigned), generation)


class KafkaConsumer(FetchConsumer):
    """A member of the consumer group, reading committed records only."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._client: AIOKafkaConsumer | None = None

    @property
    def client(self) -> AIOKafkaConsumer:
        """The connected aiokafka consumer."""
        if self._client is None:
            raise TransportError("the consumer is not started")
        return self._client

    async def on_start(self) -> None:
        """Reach the broker, create topics, connect."""
        await self.engine.start(self)
        settings = self.engine.settings
        session_ms = int(settings.session_timeout * 1000)
        client = AIOKafkaConsumer(
            **connection_options(settings),
            group_id=settings.app_id,
            partition_assignment_strategy=[self.app.assignor],
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=FETCH_BYTES_MAX,
            fetch_max_wait_ms=500,
            session_timeout_ms=session_ms,
            heartbeat_interval_ms=max(100, session_ms // 10),
            rebalance_timeout_ms=max(session_ms, 60_000),
            max_poll_interval_ms=600_000,
        )
        await client.start()
        self._client = client

    async def on_stop(self) -> None:
        """Leave the group."""
        if self._client is not None:
            await self._client.stop()

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for `topics`."""
        self.client.subscribe(topics=set(topics), listener=_RebalanceListener(self))

    def take(self, partitions: Sequence[TP]) -> Mapping[TP, Sequence[Record]]:
        """Drain what the background fetcher has received.

        aiokafka's own `getmany` would wait, and awaiting between taking records and noting their position would let a
        seek come between the two.
        """
        fetcher, wanted = self.client._fetcher, {TopicPartition(tp.topic, tp.partition): tp for tp in partitions}
        taken: dict[TP, Sequence[Record]] = {}
        if fetcher._subscriptions.reassignment_in_progress:
            return taken
        with fetcher._subscriptions.fetch_context():
            for kafka_tp in [tp for tp in fetcher._records if tp in wanted]:
                result = fetcher._records.pop(kafka_tp)
                fetcher._notify(fetcher._wait_consume_future)
                if isinstance(result, FetchError):
                    log.error("fetching %s failed: %s", kafka_tp, result._error)
                elif result.has_more():
                    # Build our records in place of aiokafka's: the object per record is a tenth of the whole cost.
                    result._partition_records._consumer_record = _to_record
                    if records := result.getall():
                        taken[wanted[kafka_tp]] = records
        return taken

    async def wait_for_records(self) -> None:
        """Wait for the background fetcher."""
        await self.client._fetcher._create_fetch_waiter()

    def position_of(self, tp: TP) -> int | None:
        """The next offset to be fetched."""
        state = self._state(tp)
        return state.position if state is not None and state.has_valid_position else None

    def _state(self, tp: TP) -> Any:
        subscription = self.client._subscription.subscription
        assignment = subscription.assignment if subscription is not None else None
        kafka_tp = TopicPartition(tp.topic, tp.partition)
        return assignment.state_value(kafka_tp) if assignment is not None and kafka_tp in assignment.tps else None

    def seek_now(self, tp: TP, offset: int) -> None:
        """Go on fetching at `offset`."""
        if self._state(tp) is not None:
            self.client.seek(TopicPartition(tp.topic, tp.partition), offset)

    def assignment(self) -> set[TP]:
        """What the group gave to this worker."""
        return ensure_TPset(self._client.assignment()) if self._client is not None else set()

    def highwater(self, tp: TP) -> int:
        """The end of the partition as of the last fetch."""
        state = self._state(tp)
        return (state.lso or 0) if state is not None else 0

    async def highwaters(self, *partitions: TP) -> Mapping[TP, int]:
        """The ends of partitions."""
        try:
            ends = await self.client.end_offsets([TopicPartition(tp.topic, tp.partition) for tp in partitions])
        except KafkaError as error:
            raise TransportError(f"cannot read the ends of topics: {error}") from error
        return {TP(tp.topic, tp.partition): offset for tp, offset in ends.items()}

    async def earliest_offsets(self, *partitions: TP) -> Mapping[TP, int]:
        """The first offsets there are."""
        starts = await self.client.beginning_offsets([TopicPartition(tp.topic, tp.partition) for tp in partitions])
        return {TP(tp.topic, tp.partition): offset for tp, offset in starts.items()}

    def topic_partitions(self, topic: str) -> int | None:
        """How many partitions `topic` has."""
        return len(self.client.partitions_for_topic(topic) or ()) or None

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        """Nothing: the engine creates all topics at start."""

    def request_rejoin(self) -> bool:
        """Join the group anew: this worker may own less than it believes."""
        self.client._coordinator.request_rejoin()
        return True


class Transport(EngineTransport):
    """Faust's entry to kafka://."""

    Consumer = KafkaConsumer
    driver_version = f"aiokafka={aiokafka.__version__}"
