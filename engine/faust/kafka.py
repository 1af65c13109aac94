"""The transport kafka://: Faust's consumer on aiokafka, in the worker's own event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any

import aiokafka.abc
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.consumer.fetcher import FetchError
from aiokafka.errors import KafkaError, NoOffsetForPartitionError, OffsetOutOfRangeError
from faust.transport.consumer import ensure_TPset
from faust.types import TP

from engine.faust.driver import FETCH_BYTES_MAX, EngineTransport, FetchConsumer
from engine.log.kafka.clients import stop as stop_client
from engine.log.kafka.connection import connection_options
from engine.log.kafka.member import GroupMember
from engine.log.ports import ClientState, Record, TransportError

log = logging.getLogger(__name__)

HEARTBEAT_MAX_MS = 500


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
        self._topics: set[str] = set()
        self._member = GroupMember(lambda: self.client, self._replace_client)

    @property
    def client(self) -> AIOKafkaConsumer:
        """The connected aiokafka consumer."""
        if self._client is None:
            raise TransportError("the consumer is not started")
        return self._client

    async def on_start(self) -> None:
        """Reach the broker, create topics, connect."""
        await self.engine.start(self)
        self._client = await self._connected()
        self._member.start()

    async def _replace_client(self) -> None:
        """Leave the group and join it with a new client, as soon as a broker answers.

        Joining revokes and assigns partitions as every rebalance does, so that the engine goes on from its positions.
        """
        failed, self._client = self.client, await self._connected()
        await stop_client(failed)
        if self._topics:
            await self.subscribe(self._topics)

    def clients(self) -> Sequence[ClientState]:
        """How the member of the group does."""
        return (self._member.state(),)

    async def _connected(self) -> AIOKafkaConsumer:
        """A connected client, however long it takes: the broker may have gone away again since the topics were made."""
        settings = self.engine.settings
        backoff_s = settings.restart_backoff
        while True:
            client = self._new_client()
            try:
                await client.start()
                return client
            except KafkaError as error:
                await stop_client(client)
                log.error("the consumer cannot connect (%s); trying again in %.1f s", error, backoff_s)
            await asyncio.sleep(backoff_s)
            backoff_s = min(backoff_s * 2, settings.restart_backoff_max)

    def _new_client(self) -> AIOKafkaConsumer:
        settings = self.engine.settings
        session_ms = int(settings.session_timeout * 1000)
        return AIOKafkaConsumer(
            **connection_options(settings),
            group_id=settings.app_id,
            partition_assignment_strategy=[self.app.assignor],
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="none",  # what is out of range is never skipped: see _failed
            max_partition_fetch_bytes=FETCH_BYTES_MAX,
            fetch_max_wait_ms=500,
            session_timeout_ms=session_ms,
            # The answer to a heartbeat tells of a rebalance, and all wait for the last one who hears of it.
            heartbeat_interval_ms=max(100, min(session_ms // 10, HEARTBEAT_MAX_MS)),
            rebalance_timeout_ms=max(session_ms, 60_000),
            max_poll_interval_ms=600_000,
        )

    async def on_stop(self) -> None:
        """Leave the group."""
        await self._member.stop()
        if self._client is not None:
            await stop_client(self._client)

    async def subscribe(self, topics: Iterable[str]) -> None:
        """Join the group for `topics`."""
        self._topics = set(topics)
        self.client.subscribe(topics=self._topics, listener=_RebalanceListener(self))

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
                    self._failed(wanted[kafka_tp], result._error)
                elif result.has_more():
                    # Build our records in place of aiokafka's: the object per record is a tenth of the whole cost.
                    result._partition_records._consumer_record = _to_record
                    if records := result.getall():
                        taken[wanted[kafka_tp]] = records
        return taken

    def _failed(self, tp: TP, error: BaseException) -> None:
        """A fetch has failed; one without a position waits for the engine to say where to go on."""
        if isinstance(error, OffsetOutOfRangeError):
            self.engine.out_of_range(tp.topic, tp.partition)
        elif not isinstance(error, NoOffsetForPartitionError):
            log.error("fetching %s/%d failed: %s", tp.topic, tp.partition, error)

    async def wait_for_records(self) -> None:
        """Wait for the background fetcher; an error that ends the client is the watch's to mend, see GroupMember."""
        with suppress(KafkaError):
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
