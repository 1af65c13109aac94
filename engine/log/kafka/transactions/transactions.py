"""What Kafka says of transactions: states from their coordinators, open ones from the leaders of partitions.

Also the four requests by which a client without records of its own decides a transaction.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, NamedTuple

from aiokafka.client import AIOKafkaClient, ConnectionGroup, CoordinationType
from aiokafka.errors import (
    ConcurrentTransactions,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    InvalidProducerEpoch,
    KafkaConnectionError,
    KafkaError,
    NodeNotReadyError,
    NotCoordinatorError,
    RequestTimedOutError,
    TopicAuthorizationFailedError,
    for_code,
)
from aiokafka.errors import ProducerFenced as KafkaFenced
from aiokafka.protocol.transaction import (
    AddOffsetsToTxnRequest,
    AddPartitionsToTxnRequest,
    EndTxnRequest,
    InitProducerIdRequest,
)
from aiokafka.structs import TopicPartition

from engine.log.kafka.transactions.requests import DescribeProducersRequest, DescribeTransactionsRequest
from engine.log.ports import OpenTransaction, ProducerFenced, TransportError

GROUP_OFFSETS: Final = "__consumer_offsets"
PATIENCE_S: Final = 30.0
PAUSE_S: Final = 0.05
PARTITIONS_PER_REQUEST: Final = 100  # reading more in one go would hold up the event loop
UNKNOWN_ID: Final = 105  # TRANSACTIONAL_ID_NOT_FOUND, which aiokafka does not know
_PREPARING: Final = ("PrepareCommit", "PrepareAbort", "PrepareEpochFence")
_PASSING: Final = (
    ConcurrentTransactions,
    CoordinatorLoadInProgressError,
    CoordinatorNotAvailableError,
    KafkaConnectionError,
    NodeNotReadyError,
    NotCoordinatorError,
    RequestTimedOutError,
)


class TransactionState(NamedTuple):
    """What the coordinator says of a transactional id; `partitions` are those of its open transaction."""

    state: str
    timeout_ms: int
    start_time_ms: int
    producer_id: int
    epoch: int
    partitions: frozenset[tuple[str, int]]


class TransactionClient:
    """Asks about transactions and decides them, on connections of its own. All methods raise TransportError."""

    def __init__(self, client: AIOKafkaClient) -> None:
        self._client = client

    async def state(self, transactional_id: str) -> TransactionState | None:
        """The state once nothing is being decided any more; None for an id that the coordinator does not know."""
        deadline = _deadline()
        while (found := await self._describe(transactional_id)) is not None and found.state in _PREPARING:
            if _now() > deadline:
                raise TransportError(f"the transaction of {transactional_id} is {found.state} for over {PATIENCE_S} s")
            await asyncio.sleep(PAUSE_S)
        return found

    async def _describe(self, transactional_id: str) -> TransactionState | None:
        answer = await self._ask(transactional_id, DescribeTransactionsRequest([transactional_id]), _described_error)
        code, _, state, timeout_ms, start_ms, producer_id, epoch, topics, _ = answer.states[0]
        if code == UNKNOWN_ID:
            return None
        partitions = frozenset((topic, number) for topic, numbers, _ in topics for number in numbers)
        return TransactionState(state, timeout_ms, start_ms, producer_id, epoch, partitions)

    async def producer_ids(self, transactional_ids: Iterable[str]) -> Mapping[int, str]:
        """The transactional id of each producer id, for those that the coordinators know."""
        found = {name: await self._describe(name) for name in transactional_ids}
        return {state.producer_id: name for name, state in found.items() if state is not None}

    async def open_transactions(self, topics: Mapping[str, int]) -> list[OpenTransaction]:
        """The open transactions in topics (name to number of partitions), and in what Kafka keeps of groups' offsets.

        Topics that this client may not read are left out.
        """
        wanted = {TopicPartition(topic, number) for topic, count in topics.items() for number in range(count)}
        found: list[OpenTransaction] = []
        deadline, is_first = _deadline(), True
        while wanted:
            try:
                await self._client.set_topics({*topics, GROUP_OFFSETS})
                if is_first:
                    numbers = self._client.cluster.partitions_for_topic(GROUP_OFFSETS) or ()
                    wanted |= {TopicPartition(GROUP_OFFSETS, number) for number in numbers}
                    is_first = False
                found += await self._ask_leaders(wanted)
            except KafkaError as error:
                raise TransportError(f"cannot ask for open transactions: {error!r}") from error
            if wanted:
                if _now() > deadline:
                    raise TransportError(f"no leader tells of transactions in {_some(wanted)}")
                await asyncio.sleep(PAUSE_S)
                await self._client.force_metadata_update()
        return found

    async def _ask_leaders(self, wanted: set[TopicPartition]) -> list[OpenTransaction]:
        """Ask for `wanted` partitions and take out of it those that were answered."""
        by_leader: dict[int, list[TopicPartition]] = defaultdict(list)
        for tp in wanted:
            leader = self._client.cluster.leader_for_partition(tp)
            if leader is not None and leader >= 0:
                by_leader[leader].append(tp)
        found: list[OpenTransaction] = []
        for leader, tps in by_leader.items():
            tps.sort()
            for first in range(0, len(tps), PARTITIONS_PER_REQUEST):
                numbers: dict[str, list[int]] = defaultdict(list)
                for tp in tps[first : first + PARTITIONS_PER_REQUEST]:
                    numbers[tp.topic].append(tp.partition)
                answer = await self._client.send(leader, DescribeProducersRequest(numbers))
                found += _open_ones(answer, wanted)
                await asyncio.sleep(0)
        return found

    async def take_over(self, transactional_id: str, timeout_ms: int) -> tuple[int, int]:
        """Become the producer of an id: its producer id and new epoch. An open transaction is aborted."""
        request = InitProducerIdRequest(transactional_id, timeout_ms)
        answer = await self._ask(transactional_id, request, lambda answer: answer.error_code)
        return answer.producer_id, answer.producer_epoch

    async def add(
        self, transactional_id: str, producer: tuple[int, int], partitions: Iterable[tuple[str, int]], group: str
    ) -> None:
        """Add partitions to the transaction of `producer` (id and epoch); for offsets of a group, the group."""
        numbers: dict[str, list[int]] = defaultdict(list)
        for topic, number in partitions:
            numbers[topic].append(number)
        if numbers.pop(GROUP_OFFSETS, None):
            of_group = AddOffsetsToTxnRequest(transactional_id, *producer, group)
            await self._ask(transactional_id, of_group, lambda answer: answer.error_code)
        if numbers:
            request = AddPartitionsToTxnRequest(transactional_id, *producer, list(numbers.items()))
            await self._ask(transactional_id, request, _added_error)

    async def end(self, transactional_id: str, producer: tuple[int, int], commit: bool) -> None:
        """Decide the transaction of `producer` (id and epoch); its markers come a moment later."""
        await self._ask(
            transactional_id, EndTxnRequest(transactional_id, *producer, commit), lambda answer: answer.error_code
        )

    async def _ask(self, transactional_id: str, request: Any, error_code: Any) -> Any:
        """The coordinator's answer, asked again while it only says that it is not there or busy."""
        deadline = _deadline()
        while True:
            try:
                node = await self._client.coordinator_lookup(CoordinationType.TRANSACTION, transactional_id)
                answer = await self._client.send(node, request, group=ConnectionGroup.COORDINATION)
                if (code := error_code(answer)) in (0, UNKNOWN_ID):
                    return answer
                raise for_code(code)(transactional_id)
            except _PASSING as error:
                if _now() > deadline:
                    raise TransportError(f"the coordinator of {transactional_id} does not answer: {error!r}") from error
            except (InvalidProducerEpoch, KafkaFenced) as error:
                raise ProducerFenced(f"{transactional_id}: {error!r}") from error
            except KafkaError as error:
                raise TransportError(f"{type(request).__name__} for {transactional_id}: {error!r}") from error
            await asyncio.sleep(PAUSE_S)


@asynccontextmanager
async def transaction_client(options: Mapping[str, Any]) -> AsyncIterator[TransactionClient]:
    """Give a connected client; raises TransportError when no broker can be reached."""
    client = AIOKafkaClient(**options)
    try:
        try:
            await client.bootstrap()
        except KafkaError as error:
            raise TransportError(f"cannot reach Kafka: {error}") from error
        yield TransactionClient(client)
    finally:
        await client.close()


def _described_error(answer: Any) -> int:
    return int(answer.states[0][0])


def _added_error(answer: Any) -> int:
    return next((code for _, partitions in answer.errors for _, code in partitions if code), 0)


def _open_ones(answer: Any, wanted: set[TopicPartition]) -> list[OpenTransaction]:
    """The open transactions in an answer; what it has answered is taken out of `wanted`."""
    found = []
    for topic, partitions, _ in answer.topics:
        for number, code, _, producers, _ in partitions:
            if code not in (0, TopicAuthorizationFailedError.errno):
                continue
            wanted.discard(TopicPartition(topic, number))
            for producer_id, epoch, _, last_ms, _, start, _ in producers:
                if start >= 0:
                    found.append(OpenTransaction(topic, number, producer_id, epoch, start, last_ms))
    return found


def _some(tps: Iterable[TopicPartition]) -> str:
    shown: Sequence[str] = sorted(f"{tp.topic}/{tp.partition}" for tp in tps)
    return ", ".join(shown[:3]) + (f" and {len(shown) - 3} more" if len(shown) > 3 else "")


def _now() -> float:
    return asyncio.get_running_loop().time()


def _deadline() -> float:
    return _now() + PATIENCE_S
