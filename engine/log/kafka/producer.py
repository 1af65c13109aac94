"""Transactions on Kafka: one transactional producer per partition number, and record batches built in one go."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import InvalidProducerEpoch, KafkaError
from aiokafka.errors import ProducerFenced as KafkaFenced
from aiokafka.producer import sender
from aiokafka.producer.message_accumulator import BatchBuilder

from engine.declare.settings import Settings
from engine.log.kafka.connection import PRODUCE_BATCH_BYTES, REQUEST_BYTES_MAX, connection_options
from engine.log.kafka.transactions.coordinator import CoordinatorGuard, abandon, forget
from engine.log.kafka.transactions.hanging import Settlement, writer_timeout_ms
from engine.log.kafka.transactions.transactions import transaction_client
from engine.log.ports import Outgoing, ProducerFenced, TransactionalProducer, TransportError

# A transaction that follows the marker of the one before is told to retry. Measured at 200 commands/s, sent to visible:
# p50 21 ms and p99 107 ms with 5 ms, 14 and 72 with 2.
RETRY_BACKOFF_MS = 2
# aiokafka waits a constant 20 ms in the one case that is ours all the time: the first request of a transaction that
# follows another. It offers no setting for that.
sender.BACKOFF_OVERRIDE = RETRY_BACKOFF_MS / 1000
START_TIMEOUT_S = 60.0  # aiokafka would wait for ever
RECORDS_PER_SLICE = 500  # building more at once would hold up the event loop
_NO_HEADERS: list[tuple[str, bytes]] = []


def transactional_id(settings: Settings, partition: int) -> str:
    """The transactional id of the writer of a partition number."""
    return f"{settings.app_id}-{partition}"


class KafkaTransactions(TransactionalProducer):
    """A writer with a transactional id: its start ends what an earlier one of that id had open (fencing)."""

    markers = 1

    def __init__(self, settings: Settings, transactional_id: str, topics: Mapping[str, int], partition: int) -> None:
        """`topics` are all that a transaction may write into, with their numbers of partitions."""
        self._settings = settings
        self._partition = partition
        self._topics = topics
        self._transactional_id = transactional_id
        self._timeout_ms = writer_timeout_ms(settings.transaction_timeout)
        self._producer: AIOKafkaProducer | None = None
        self._coordinator: CoordinatorGuard | None = None
        self._is_settled = False  # what was settled may have changed when the coordinator was away since
        self._sent: list[tuple[tuple[str, int], int, asyncio.Future[Any]]] = []
        self._ends: dict[tuple[str, int], int] = {}
        self._offsets_sent: asyncio.Future[None] | None = None

    async def settle(self, changelogs: Sequence[str], distrust: Callable[[], Awaitable[None]]) -> None:
        """Decide what an earlier writer left without markers; see kafka_hanging."""
        async with transaction_client(connection_options(self._settings)) as client:
            settlement = Settlement(
                client, self._transactional_id, self._settings.app_id, self._topics, self._timeout_ms
            )
            await settlement.settle({(topic, self._partition) for topic in changelogs}, distrust)
        self._is_settled = True

    async def start(self) -> None:
        """Become the writer and fence the one before."""
        settings = self._settings
        self._producer = AIOKafkaProducer(
            **connection_options(settings),
            transactional_id=self._transactional_id,
            transaction_timeout_ms=self._timeout_ms,
            acks="all",
            linger_ms=0,
            max_batch_size=PRODUCE_BATCH_BYTES,
            max_request_size=REQUEST_BYTES_MAX,
            retry_backoff_ms=RETRY_BACKOFF_MS,
        )
        self._coordinator = CoordinatorGuard(self._producer, self._is_settled)
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await self._call(self._coordinator.start())
        except TimeoutError as error:
            reason = f"no coordinator has answered for {START_TIMEOUT_S:.0f} s"
            raise TransportError(f"partition {self._partition}: {reason}") from error

    async def _call(self, operation: Any) -> Any:
        try:
            return await operation
        except (KafkaFenced, InvalidProducerEpoch) as error:
            raise ProducerFenced(f"producer {self._transactional_id}: {error}") from error
        except KafkaError as error:
            raise TransportError(f"producer {self._transactional_id}: {type(error).__name__}: {error}") from error

    @property
    def _started(self) -> AIOKafkaProducer:
        if self._producer is None:
            raise TransportError(f"producer {self._transactional_id} is not started")
        return self._producer

    async def begin(self) -> None:
        """Open a transaction."""
        self._sent, self._ends = [], {}
        if self._coordinator is not None:
            await self._call(self._coordinator.check())
        await self._call(self._started.begin_transaction())

    async def send(self, batches: Mapping[tuple[str, int], Sequence[Outgoing]]) -> None:
        """Queue pre-built record batches: a tenth of the cost of one `send` per record.

        The first batch of every destination is queued in one go, so that aiokafka adds all of them to the transaction
        in one request and produces them in another; at a low rate requests are nearly the whole cost of a commit.
        """
        built: dict[tuple[str, int], list[Any]] = {}
        for destination, records in batches.items():
            built[destination] = build_batches(self._started, records)
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
                self._started.send_offsets_to_transaction(positions, self._settings.app_id)
            )

    async def flush(self) -> None:
        """Wait for all acknowledgements."""
        for destination, count, acknowledged in self._sent:
            self._ends[destination] = (await self._call(acknowledged)).offset + count
        if self._offsets_sent is not None:
            offsets_sent, self._offsets_sent = self._offsets_sent, None
            await self._call(offsets_sent)

    async def commit(self) -> Mapping[tuple[str, int], int]:
        """Make everything since `begin` visible at once."""
        await self.flush()
        await self._call(self._started.commit_transaction())
        return self._ends

    async def close(self) -> None:
        """Disconnect; an open transaction is aborted by the broker or by the next owner."""
        producer, self._producer = self._producer, None
        if self._coordinator is not None:
            self._coordinator.close()
        if self._offsets_sent is not None:
            self._offsets_sent.cancel()
            forget(self._offsets_sent)
        if producer is not None:
            await _stop_abruptly(producer)
        for _, _, acknowledged in self._sent:
            forget(acknowledged)


async def _stop_abruptly(producer: AIOKafkaProducer) -> None:
    """Stop without waiting for what is still unsent: `stop` alone would try to flush a lost transaction."""
    abandon(producer, KafkaFenced())
    try:
        async with asyncio.timeout(5):
            await producer.stop()
    except (TimeoutError, KafkaError):
        await producer.client.close()
    forget(producer._txn_manager._transaction_waiter)


def build_batches(producer: AIOKafkaProducer, records: Sequence[Outgoing]) -> list[BatchBuilder]:
    """Records as closed batches, each as large as the producer takes; a larger record has a batch of its own.

    Records are appended to the compiled builder inside aiokafka's BatchBuilder, which is told their number at the end:
    its own `append` adds half as much again to the cost of a record, and asks for the time at each.
    """
    batches: list[BatchBuilder] = []
    timestamp_ms = int(time.time() * 1000)
    left = iter(records)
    record = next(left, None)
    while record is not None or not batches:
        batch, count = producer.create_batch(), 0
        append = batch._builder.append
        while record is not None:
            key, value, headers = record
            if append(count, timestamp_ms, key, value, list(headers) if headers else _NO_HEADERS) is None:
                break
            count += 1
            record = next(left, None)
        batch._relative_offset = count
        batch.close()
        batches.append(batch)
    return batches
