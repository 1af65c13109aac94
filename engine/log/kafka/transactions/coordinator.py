"""Watches a producer's connection to its transaction coordinator: a lost one may have cost decided markers.

aiokafka asks again whatever was not answered, also of a coordinator that has started anew. The next transaction would
then begin on top of one whose markers were never written, and its marker would decide both. So the first sign of
another coordinator ends this producer; the next one settles first what is left.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from aiokafka import AIOKafkaProducer
from aiokafka.client import AIOKafkaClient, CoordinationType
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaError

from engine.log.kafka.clients import BrokersInReach

PAUSE_S: Final = 0.2
_HUNG_UP: Final = (CloseReason.CONNECTION_BROKEN, CloseReason.CONNECTION_TIMEOUT)


class CoordinatorLost(KafkaError):  # type: ignore[misc]
    """The coordinator was away: what became of the last transaction has to be asked before the next one."""

    retriable = False


class CoordinatorGuard:
    """Ends a transactional producer with CoordinatorLost when its coordinator hangs up or is another one.

    It begins before the producer starts: that ends a transaction of the producer before, whose markers may be lost as
    well. Afterwards nothing is sent from the first sign on. Those who wait for answers hear of it when a broker answers
    again: until then their partition could not start anew, and could not be read either.
    """

    def __init__(self, producer: AIOKafkaProducer, is_settled: bool) -> None:
        """Without `is_settled` a start may wait for a coordinator that is not there yet, as that of a new cluster."""
        self._producer = producer
        self._is_settled = is_settled
        self._lost: CoordinatorLost | None = None
        self._told = asyncio.Event()
        self._looking: asyncio.Task[None] | None = None
        self._is_started = False
        self._closed, self._dead = producer.client._on_connection_closed, producer._sender._coordinator_dead
        producer.client._on_connection_closed = self._on_closed
        producer._sender._coordinator_dead = self._on_dead

    async def start(self) -> None:
        """Start the producer; raises CoordinatorLost if the coordinator was away meanwhile."""
        await self._producer.start()
        if self._lost is not None:
            raise self._lost
        self._is_started = True

    async def check(self) -> None:
        """Raise CoordinatorLost if the coordinator was away; waits while no broker answers."""
        if self._lost is not None:
            await self._told.wait()
            raise self._lost

    def close(self) -> None:
        """Let all who wait hear of it now."""
        if self._looking is not None:
            self._looking.cancel()
        self._told.set()

    def _on_closed(self, connection: Any, reason: CloseReason) -> None:
        self._closed(connection, reason)
        nodes = [node for (node, _), known in self._producer.client._conns.items() if known is connection]
        if reason in _HUNG_UP and self._producer._sender._coordinators.get(CoordinationType.TRANSACTION) in nodes:
            self.lose()

    def _on_dead(self, kind: CoordinationType) -> None:
        self._dead(kind)
        if kind is CoordinationType.TRANSACTION and (self._is_started or self._is_settled):
            self.lose()

    def lose(self) -> None:
        """Send nothing more: the coordinator was away."""
        if self._lost is not None:
            return
        self._lost = CoordinatorLost("the transaction coordinator was away")
        if self._is_started:
            self._producer.client.send = self._refuse
            self._looking = asyncio.create_task(self._tell_when_a_broker_answers(self._lost))

    async def _tell_when_a_broker_answers(self, error: CoordinatorLost) -> None:
        client, brokers = self._producer.client, BrokersInReach()
        while not await client.force_metadata_update():
            if brokers.are_lost(client) and await _is_elsewhere(client):
                break
            await asyncio.sleep(PAUSE_S)
        manager = self._producer._txn_manager
        abandon(self._producer, error)
        if manager._transaction_waiter is not None:
            manager.fatal_error(error)
            forget(manager._transaction_waiter)
        self._told.set()

    async def _refuse(self, *_: Any, **__: Any) -> Any:
        """Takes the place of what sends requests; senders would ask again at once if it did not wait."""
        await self._told.wait()
        raise CoordinatorLost("nothing is sent after the transaction coordinator was away")


async def _is_elsewhere(client: AIOKafkaClient) -> bool:
    """Return whether a broker answers at the addresses of the settings, which aiokafka asks once only, at the start."""
    try:
        await client.bootstrap()
    except KafkaError:
        return False
    return True


def abandon(producer: AIOKafkaProducer, error: KafkaError) -> None:
    """Let everything that was not acknowledged yet fail with `error`, for ever; what is under way is not tried again.

    aiokafka has a function for the first half (`fail_all`); its sender may then take up again what has failed.
    """
    accumulator = producer._message_accumulator
    batches = [*accumulator._pending_batches, *(batch for queue in accumulator._batches.values() for batch in queue)]
    accumulator.fail_all(error)
    accumulator._batches.clear()
    accumulator.reenqueue = _drop
    for batch in batches:
        forget(batch.future)
        forget(batch._drain_waiter)


def _drop(batch: Any) -> None:
    """Takes the place of what tries a batch again; it has failed already."""


def forget(future: asyncio.Future[Any] | None) -> None:
    """Nobody waits for the future any more; a failed one would be reported as never looked at."""
    if future is not None and future.done() and not future.cancelled():
        future.exception()
