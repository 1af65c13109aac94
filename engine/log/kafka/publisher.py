"""Publishing to Kafka outside of partition tasks: idempotently, in order, and going on after a refusal.

A batch that Kafka refuses leaves a gap in the sequence numbers of its producer: all that follows it in that partition
would be refused as well. So the producer is replaced after every failure. What must hold meanwhile:

- Records of a partition are written one call after the other: none is behind a refused one, and none of a new producer
  overtakes one of its predecessor.
- Records are sent again by a new producer only when they are known not to be in the log. Whatever else becomes of a
  batch, its outcome is unknown, and the one who asked is told so: repeating it is safe for a command, by its id.
- Calls for other partitions that are under way keep the old producer to their end.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from itertools import chain
from typing import Any, Final, TypeVar

from aiokafka import AIOKafkaProducer, TopicPartition
from aiokafka.errors import (
    CorruptRecordException,
    InvalidProducerEpoch,
    InvalidTimestampError,
    InvalidTopicError,
    KafkaError,
    KafkaTimeoutError,
    MessageSizeTooLargeError,
    OutOfOrderSequenceNumber,
    PolicyViolationError,
    ProducerFenced,
    RecordListTooLargeError,
    TopicAuthorizationFailedError,
    UnknownProducerId,
)
from aiokafka.structs import RecordMetadata

from engine.log.kafka.clients import ReplaceableClient, describe
from engine.log.kafka.connection import PRODUCE_BATCH_BYTES, REQUEST_BYTES_MAX
from engine.log.kafka.producer import build_batches
from engine.log.ports import Outgoing, Position, RecordsRefused, RecordsTooLarge, TransportError

TURN_TIMEOUT_S: Final = 20.0  # waiting for the calls before this one; nothing of it is written meanwhile
# Far beyond a broker's restart, in which aiokafka tries again by itself and no duplicates can arise.
ACKNOWLEDGEMENT_TIMEOUT_S: Final = 60.0
ATTEMPTS: Final = 3
LOG_APPEND_TIME: Final = 1
W = TypeVar("W")

_TOO_LARGE = MessageSizeTooLargeError, RecordListTooLargeError
_REFUSED = (
    *_TOO_LARGE,
    CorruptRecordException,
    InvalidTimestampError,
    InvalidTopicError,
    PolicyViolationError,
    TopicAuthorizationFailedError,
)
# The producer's state at the broker is not what the producer believes: another producer has none to differ in.
_PRODUCER_LOST = OutOfOrderSequenceNumber, UnknownProducerId, InvalidProducerEpoch, ProducerFenced


class KafkaPublisher:
    """The producer of the web view and of everything else that publishes outside of partition tasks."""

    def __init__(
        self,
        options: Mapping[str, Any],
        explain: Callable[[Exception], Awaitable[TransportError]],
        acknowledgement_timeout_s: float = ACKNOWLEDGEMENT_TIMEOUT_S,
    ) -> None:
        """`options` are those of all clients; `explain` says why none can be connected."""
        self._options = dict(options)
        self._acknowledgement_timeout_s = acknowledgement_timeout_s
        self.client = ReplaceableClient("producer for publishing", self._new_producer, explain)
        self._turns: defaultdict[tuple[str, int], asyncio.Lock] = defaultdict(asyncio.Lock)

    def _new_producer(self) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            **self._options,
            enable_idempotence=True,
            acks="all",
            linger_ms=0,
            max_batch_size=PRODUCE_BATCH_BYTES,
            max_request_size=REQUEST_BYTES_MAX,
        )

    async def publish(self, topic: str, partition: int, records: Sequence[Outgoing]) -> list[Position]:
        """Write records; returns when the broker has all of them.

        Raises RecordsRefused when none of them is in the log, TransportError when that is not known.
        """
        return await self._in_turn(topic, partition, lambda: self._write(topic, partition, records))

    async def stamp(self, topic: str) -> int | None:
        """Write an empty record into partition 0: the broker's time in ms, None unless the broker stamps the topic."""
        written = await self._in_turn(topic, 0, lambda: self._write_one(topic, 0, [(None, b"", ())]))
        return int(written.timestamp) if written.timestamp_type == LOG_APPEND_TIME else None

    async def _in_turn(self, topic: str, partition: int, write: Callable[[], Awaitable[W]]) -> W:
        health = self.client.health
        try:
            async with self._turn(topic, partition):
                written = await write()
        except RecordsTooLarge:
            raise  # which says something about the records, and nothing about the client
        except TransportError as error:
            health.failed(str(error), topic if isinstance(error.__cause__, _REFUSED) else None)
            raise
        health.worked(topic)
        return written

    @asynccontextmanager
    async def _turn(self, topic: str, partition: int) -> AsyncIterator[None]:
        """One call for a partition after the other."""
        turn = self._turns[topic, partition]
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S):
                await turn.acquire()
        except TimeoutError as error:
            reason = f"what was sent to {topic}/{partition} before is not acknowledged"
            raise RecordsRefused(f"Kafka took no records for {TURN_TIMEOUT_S:.0f} s: {reason}") from error
        try:
            yield
        finally:
            turn.release()

    async def _write(self, topic: str, partition: int, records: Sequence[Outgoing]) -> list[Position]:
        async with self._producer() as producer:
            batches = build_batches(producer, records)
        written: list[Position] = []
        for batch in batches:
            first, count = len(written), batch.record_count()
            try:
                offset = (await self._write_batch(topic, partition, batch, records[first : first + count])).offset
            except RecordsRefused as error:
                if not written:
                    raise
                raise TransportError(f"{first} of {len(records)} records are written; then {error}") from error
            written += [Position(topic, partition, offset + index) for index in range(count)]
        return written

    async def _write_one(self, topic: str, partition: int, records: Sequence[Outgoing]) -> RecordMetadata:
        async with self._producer() as producer:
            (batch,) = build_batches(producer, records)
        return await self._write_batch(topic, partition, batch, records)

    async def _write_batch(self, topic: str, partition: int, batch: Any, records: Sequence[Outgoing]) -> RecordMetadata:
        """Where and when the first of these records was written, over as many producers as it takes."""
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                return await self._send(topic, partition, batch)
            except _Unwritten as failure:
                if not (failure.may_be_repeated and attempts_left):
                    raise failure.explained(topic) from failure.error
            async with self._producer() as producer:
                (batch,) = build_batches(producer, records)  # the one before carries the number of its producer
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, topic: str, partition: int, batch: Any) -> RecordMetadata:
        """Send a batch with the producer of this moment; raises _Unwritten."""
        sent: Any = None
        try:
            async with self._producer() as producer:
                acknowledged = await producer.send_batch(batch, topic, partition=partition)
                sent = producer._message_accumulator._batches[TopicPartition(topic, partition)][-1]
                async with asyncio.timeout(self._acknowledgement_timeout_s):
                    with self.client.health.waiting():
                        return await acknowledged
        except TimeoutError:
            _abandon(producer)
            error: KafkaError = KafkaTimeoutError(f"no acknowledgement for {self._acknowledgement_timeout_s:.0f} s")
        except KafkaError as failure:
            error = failure
        raise _Unwritten(error, 0 if sent is None else sent.retry_count)

    @asynccontextmanager
    async def _producer(self) -> AsyncIterator[AIOKafkaProducer]:
        """A producer that works; raises RecordsRefused when there is none, because nothing is written then."""
        try:
            async with self.client.use() as producer:
                yield producer
        except TransportError as error:
            raise RecordsRefused(str(error)) from error


class _Abandoned(KafkaTimeoutError):  # type: ignore[misc]
    """Another batch of the same producer was not acknowledged in time."""


class _Unwritten(Exception):
    """A batch that its producer did not get into the log, as far as is known; `departures`: how often it was sent."""

    def __init__(self, error: KafkaError, departures: int) -> None:
        super().__init__(str(error))
        self.error = error
        # An earlier try of a batch that left several times may have been taken, whatever the last answer is.
        self._is_absent = departures == 0 or (departures == 1 and isinstance(error, (*_REFUSED, *_PRODUCER_LOST)))

    @property
    def may_be_repeated(self) -> bool:
        """Whether another producer may take the records, which are not in the log."""
        return self._is_absent and isinstance(self.error, (*_PRODUCER_LOST, _Abandoned))

    def explained(self, topic: str) -> TransportError:
        """The error for the caller."""
        reason = f"Kafka did not take a record of {topic}: {describe(self.error)}"
        if not self._is_absent:
            return TransportError(reason)
        if isinstance(self.error, _TOO_LARGE):
            return RecordsTooLarge(f"{reason}: it is larger than max.message.bytes of the topic or its broker allows")
        if isinstance(self.error, InvalidTimestampError):
            now = time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())
            return RecordsRefused(f"{reason}: this worker's clock says {now}, and the broker's differs by too much")
        return RecordsRefused(reason)


def _abandon(producer: AIOKafkaProducer) -> None:
    """Let nothing leave any more: what is not acknowledged fails now, and what was never sent is never sent."""
    accumulator = producer._message_accumulator
    unacknowledged = [*accumulator._pending_batches, *chain.from_iterable(accumulator._batches.values())]
    accumulator.reenqueue = _drop  # a request under way brings its batches back when it fails
    accumulator.fail_all(_Abandoned("its producer was given up"))
    accumulator._batches.clear()
    for batch in unacknowledged:
        batch.future.exception()  # looked at, as the one who waited for it may have gone


def _drop(batch: Any) -> None:
    """Nothing: the batch has failed already."""
