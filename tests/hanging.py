"""Transactions that hang, made on a real broker with transaction.partition.verification.enable=false."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddOffsetsToTxnResponse_v0,
    AddPartitionsToTxnRequest,
    AddPartitionsToTxnResponse_v0,
    EndTxnRequest,
)
from aiokafka.protocol.types import Boolean, CompactArray, CompactString, Int16, Int32, Int64, Schema, TaggedFields
from aiokafka.structs import TopicPartition

from engine.log.kafka.connection import connection_options
from engine.log.kafka.producer import KafkaTransactions
from engine.log.kafka.transactions.coordinator import CoordinatorGuard
from engine.log.kafka.transactions.transactions import TransactionState, transaction_client
from engine.log.ports import OpenTransaction, Outgoing
from engine.partition.engine import Engine
from streams.settings import Settings

UNVERIFIED = {"transaction.partition.verification.enable": "false"}
OnEnd = Callable[[], Awaitable[None]]


class LostMarkers:
    """Lets a started producer write into partitions that the coordinator does not hear of, so none gets a marker.

    The coordinator decides a transaction over `beside` (topic and partition) alone. `on_end` is awaited where the
    request to end it would be answered; with `commit` False it is aborted.
    """

    def __init__(
        self, producer: AIOKafkaProducer, beside: tuple[str, int], commit: bool = True, on_end: OnEnd | None = None
    ) -> None:
        self._send = producer.client.send
        self._beside = beside
        self._commit = commit
        self._on_end = on_end
        producer.client.send = self.send

    async def send(self, node: int, request: Any, **options: Any) -> Any:
        """Send a request in the producer's place, or what takes its place."""
        if isinstance(request, AddPartitionsToTxnRequest):
            wanted = request._topics
            request._topics = [(self._beside[0], [self._beside[1]])]
            answer = await self._send(node, request, **options)
            code = answer.errors[0][1][0][1]
            return AddPartitionsToTxnResponse_v0(
                0, [(topic, [(number, code) for number in numbers]) for topic, numbers in wanted]
            )
        if isinstance(request, AddOffsetsToTxnRequest):
            return AddOffsetsToTxnResponse_v0(0, 0)
        if isinstance(request, EndTxnRequest):
            request._transaction_result = self._commit
            answer = await self._send(node, request, **options)
            if self._on_end is not None:
                await self._on_end()
                raise KafkaConnectionError("the answer is lost")
            return answer
        return await self._send(node, request, **options)


def lose_markers(engine: Engine, number: int, beside: tuple[str, int], commit: bool, is_answered: bool) -> None:
    """Let the next transactions of a partition task hang; without an answer its connection to Kafka is lost instead."""
    transactions = engine.tasks[number]._producer
    assert isinstance(transactions, KafkaTransactions)
    producer, guard = transactions._producer, transactions._coordinator
    assert producer is not None
    assert isinstance(guard, CoordinatorGuard)
    lost: CoordinatorGuard = guard

    async def hang_up() -> None:
        lost.lose()

    LostMarkers(producer, beside, commit, None if is_answered else hang_up)


async def hang_as(
    settings: Settings, transactional_id: str, beside: tuple[str, int], topic: str, number: int, *records: Outgoing
) -> None:
    """Leave records in a partition that no transaction of this transactional id will ever decide by itself."""
    producer = AIOKafkaProducer(**connection_options(settings), transactional_id=transactional_id)
    await producer.start()
    LostMarkers(producer, beside, commit=False)
    await producer.begin_transaction()
    for key, value, _ in records:
        await producer.send_and_wait(topic, value, key=key, partition=number)
    await producer.abort_transaction()
    await producer.stop()


async def state_of(settings: Settings, number: int) -> TransactionState:
    """What the coordinator says of a partition's writer."""
    async with transaction_client(connection_options(settings)) as client:
        state = await client.state(f"{settings.app_id}-{number}")
    assert state is not None
    return state


async def hanging_in(engine: Engine) -> list[OpenTransaction]:
    """The open transactions in the application's topics."""
    topics = {spec.name: spec.partitions for spec in engine.topic_specs()}
    return list(await engine.broker.open_transactions(topics))


async def take_over(settings: Settings, number: int, timeout_ms: int) -> tuple[int, int]:
    """Become the writer of a partition and do no more: the coordinator forgets what it had decided."""
    async with transaction_client(connection_options(settings)) as client:
        return await client.take_over(f"{settings.app_id}-{number}", timeout_ms)


async def abort_as_the_tool_does(settings: Settings, found: OpenTransaction) -> None:
    """Write the marker that `kafka-transactions.sh abort` writes."""
    client = AIOKafkaClient(**connection_options(settings))
    await client.bootstrap()
    try:
        await client.set_topics([found.topic])
        leader = client.cluster.leader_for_partition(TopicPartition(found.topic, found.partition))
        marker: tuple[Any, ...] = (
            found.producer_id,
            found.epoch,
            False,
            [(found.topic, [found.partition], {})],
            -1,
            {},
        )
        answer = await client.send(leader, WriteMarkersRequest(marker))
        assert answer.markers[0][1][0][1][0][1] == 0
    finally:
        await client.close()


class WriteMarkersResponse_v1(Response):  # type: ignore[misc]
    """Errors by producer, topic and partition."""

    API_KEY = 27
    API_VERSION = 1
    SCHEMA = Schema(
        (
            "markers",
            CompactArray(
                ("producer_id", Int64),
                (
                    "topics",
                    CompactArray(
                        ("topic", CompactString("utf-8")),
                        ("partitions", CompactArray(("partition", Int32), ("error", Int16), ("tags", TaggedFields))),
                        ("tags", TaggedFields),
                    ),
                ),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class WriteMarkersRequest_v1(RequestStruct):  # type: ignore[misc]
    """As Kafka's own tools send it."""

    API_KEY = 27
    API_VERSION = 1
    RESPONSE_TYPE = WriteMarkersResponse_v1
    FLEXIBLE_VERSION = True
    SCHEMA = Schema(
        (
            "markers",
            CompactArray(
                ("producer_id", Int64),
                ("epoch", Int16),
                ("commit", Boolean),
                (
                    "topics",
                    CompactArray(
                        ("topic", CompactString("utf-8")), ("partitions", CompactArray(Int32)), ("tags", TaggedFields)
                    ),
                ),
                ("coordinator_epoch", Int32),
                ("tags", TaggedFields),
            ),
        ),
        ("tags", TaggedFields),
    )


class WriteMarkersRequest(Request[WriteMarkersRequest_v1]):  # type: ignore[misc]
    """Decides a transaction in a partition, whatever its coordinator says: for administrators."""

    API_KEY = 27

    def __init__(self, marker: tuple[Any, ...]) -> None:
        self._marker = marker

    def build(self, request_struct_class: type[WriteMarkersRequest_v1]) -> WriteMarkersRequest_v1:
        """The request as it is sent."""
        return request_struct_class([self._marker], {})
