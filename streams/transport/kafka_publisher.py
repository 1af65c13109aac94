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
from typing import Any, Final

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

from streams.transport.base import Outgoing, Position, RecordsRefused, RecordsTooLarge, TransportError
from streams.transport.kafka_clients import ReplaceableClient, describe
from streams.transport.kafka_connection import PRODUCE_BATCH_BYTES, REQUEST_BYTES_MAX
from streams.transport.kafka_producer import build_batches

TURN_TIMEOUT_S: Final = 20.0  # waiting for the calls before this one; nothing of it is written meanwhile
# Far beyond a broker's restart, in which aiokafka tries again by itself and no duplicates can arise.
ACKNOWLEDGEMENT_TIMEOUT_S: Final = 60.0
ATTEMPTS: Final = 3

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
        turn = self._turns[topic, partition]
        try:
            async with asyncio.timeout(TURN_TIMEOUT_S):
                await turn.acquire()
        except TimeoutError as error:
            reason = f"what was sent to {topic}/{partition} before is not acknowledged"
            raise RecordsRefused(f"Kafka took no records for {TURN_TIMEOUT_S:.0f} s: {reason}") from error
        try:
            return await self._write(topic, partition, records)
        finally:
            turn.release()

    async def _write(self, topic: str, partition: int, records: Sequence[Outgoing]) -> list[Position]:
        async with self._producer() as producer:
            batches = build_batches(producer, records)
        written: list[Position] = []
        for batch in batches:
            first, count = len(written), batch.record_count()
            try:
                offset = await self._write_batch(topic, partition, batch, records[first : first + count])
            except RecordsRefused as error:
                if not written:
                    raise
                raise TransportError(f"{first} of {len(records)} records are written; then {error}") from error
            written += [Position(topic, partition, offset + index) for index in range(count)]
        return written

    async def _write_batch(self, topic: str, partition: int, batch: Any, records: Sequence[Outgoing]) -> int:
        """The offset of the first of these records, over as many producers as it takes."""
        for attempts_left in reversed(range(ATTEMPTS)):
            try:
                return await self._send(topic, partition, batch)
            except _Unwritten as failure:
                if not (failure.may_be_repeated and attempts_left):
                    raise failure.explained(topic) from failure.error
            async with self._producer() as producer:
                (batch,) = build_batches(producer, records)  # the one before carries the number of its producer
        raise AssertionError("the last attempt returns or raises")

    async def _send(self, topic: str, partition: int, batch: Any) -> int:
        """Send a batch with the producer of this moment; raises _Unwritten."""
        sent: Any = None
        try:
            async with self._producer() as producer:
                acknowledged = await producer.send_batch(batch, topic, partition=partition)
                sent = producer._message_accumulator._batches[TopicPartition(topic, partition)][-1]
                async with asyncio.timeout(self._acknowledgement_timeout_s):
                    return int((await acknowledged).offset)
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
    accumulator.fail_all(_Abandoned("its producer was given up"))
    accumulator._batches.clear()
    for batch in unacknowledged:
        batch.future.exception()  # looked at, as the one who waited for it may have gone
