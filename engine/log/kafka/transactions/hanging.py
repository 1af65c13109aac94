"""Hanging transactions: decided ones whose markers Kafka never wrote, resolved as they were decided.

A coordinator that starts with an empty view of the cluster takes partitions whose leader it does not know yet for
deleted: it calls the transaction complete and writes no markers. Its records then hold readers up until the next marker
of the same producer id, which decides them together with the transaction that it was meant for. So before a partition's
writer begins anything of its own, it asks what was decided, and writes that marker: by a transaction over exactly the
partitions where something hangs.

Becoming the producer of an id (InitProducerId) makes the coordinator forget what it had decided. One field survives it:
the timeout that the new producer names. An odd one says "this producer is only here to commit what hangs", so that the
next start goes on with it after a crash in between. Writers themselves have even ones.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from engine.log.kafka.transactions.transactions import TransactionClient, TransactionState
from engine.log.ports import OpenTransaction, TransactionHangs, TransportError

log = logging.getLogger(__name__)

ROUNDS_MAX: Final = 10
LAST_EPOCH: Final = 32_766  # the next producer of the id has another producer id, and its markers decide nothing here


class Decision(NamedTuple):
    """How hanging transactions are resolved. `is_known` is False where what was decided is not known any more."""

    commit: bool
    is_known: bool


def writer_timeout_ms(timeout_s: float) -> int:
    """The transaction timeout of a partition's writer: even."""
    return int(timeout_s * 1000) // 2 * 2


def decide(state: TransactionState, hanging: Iterable[OpenTransaction]) -> Decision:
    """What became of transactions of the producer id in `state` that have no markers."""
    epochs = {found.epoch for found in hanging}
    if state.state != "CompleteAbort" and _is_committing(state):
        return Decision(commit=True, is_known=True)
    # A writer goes on with another transaction after commits only; it gives up with its first failure.
    if state.state in ("CompleteCommit", "Ongoing") and epochs == {state.epoch}:
        return Decision(commit=True, is_known=True)
    # The coordinator aborts for a new producer, and after the timeout, with the epoch after the transaction's own.
    if state.state == "CompleteAbort" and not _is_committing(state) and epochs <= {state.epoch, state.epoch - 1}:
        return Decision(commit=False, is_known=True)
    return Decision(commit=False, is_known=False)


def _is_committing(state: TransactionState) -> bool:
    return state.timeout_ms % 2 == 1


class Settlement:
    """Settles what the earlier writers of one transactional id left behind in `topics` (with their partitions)."""

    def __init__(
        self, client: TransactionClient, transactional_id: str, group: str, topics: Mapping[str, int], timeout_ms: int
    ) -> None:
        self._client = client
        self._id = transactional_id
        self._group = group
        self._topics = topics
        self._timeout_ms = timeout_ms

    async def settle(self, changelogs: Collection[tuple[str, int]], distrust: Callable[[], Awaitable[None]]) -> None:
        """Resolve what hangs; see TransactionalProducer.settle. Only this id's writer writes into `changelogs`."""
        for _ in range(ROUNDS_MAX):
            state, found = await self._look()
            foreign = [one for one in found if (one.topic, one.partition) in changelogs and not _is_of(one, state)]
            if foreign:
                await distrust()
                raise TransactionHangs(foreign)
            if state is None or not await self._resolve(state, found, distrust):
                return
        raise TransportError(f"transactions of {self._id} hang again and again; are brokers restarting?")

    async def _look(self) -> tuple[TransactionState | None, list[OpenTransaction]]:
        """The state of the id and what is open, both of the same moment if nobody is writing meanwhile."""
        for _ in range(ROUNDS_MAX):
            before = await self._client.state(self._id)
            found = await self._client.open_transactions(self._topics)
            if before == await self._client.state(self._id):
                return before, found
        return before, [one for one in found if not _is_of(one, before)]  # a busy one: nothing says yet what hangs

    async def _resolve(
        self, state: TransactionState, found: Sequence[OpenTransaction], distrust: Callable[[], Awaitable[None]]
    ) -> bool:
        """Resolve what hangs of this id, if anything does: then there may be more."""
        if state.state == "Ongoing" and _is_committing(state):
            log.warning("going on with what an earlier start of %s had begun: committing what hangs", self._id)
            await self._client.end(self._id, (state.producer_id, state.epoch), commit=True)
            return True
        hanging = [one for one in found if _is_of(one, state) and (one.topic, one.partition) not in state.partitions]
        if not hanging:
            if state.state == "CompleteAbort" and _is_committing(state):
                await distrust()  # the coordinator's timeout was quicker than the one who came to commit
            return False
        decision = decide(state, hanging)
        log.warning(
            "%s: %s; the coordinator says %s with epoch %d, so it is %s", self._id, "; ".join(map(str, hanging)),
            state.state, state.epoch, _words(decision),
        )  # fmt: skip
        if not decision.is_known:
            await distrust()
        if state.epoch >= LAST_EPOCH:
            await distrust()
            raise TransactionHangs(hanging)
        await self._write_markers(state, hanging, decision.commit)
        return True

    async def _write_markers(self, state: TransactionState, hanging: Sequence[OpenTransaction], commit: bool) -> None:
        timeout_ms = self._timeout_ms - 1 if commit else self._timeout_ms
        producer = await self._client.take_over(self._id, timeout_ms)
        if producer[0] != state.producer_id:
            raise TransactionHangs(hanging)
        await self._client.add(self._id, producer, {(one.topic, one.partition) for one in hanging}, self._group)
        await self._client.end(self._id, producer, commit)


def _is_of(found: OpenTransaction, state: TransactionState | None) -> bool:
    return state is not None and found.producer_id == state.producer_id


def _words(decision: Decision) -> str:
    if decision.commit:
        return "committed now"
    return "aborted now" if decision.is_known else "aborted now, and stores are restored from their changelogs"
