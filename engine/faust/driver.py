"""What the Faust drivers of all transports share: whole fetches as messages, and the engine's hand on the consumer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, Protocol, cast

from faust.transport import base
from faust.transport.consumer import Consumer
from faust.transport.producer import Producer
from faust.types import TP, ConsumerMessage
from faust.types.tuples import RecordMetadata

from engine.log.partitioner import partition_for
from engine.log.ports import ClientState, Record
from engine.partition.engine import Engine
from engine.partition.task import PartitionTask
from engine.work.background import error_of
from engine.work.fetched import Fetched

FETCH_BYTES_MAX = 1 << 20


class EngineApp(Protocol):
    """The Faust app that carries an engine."""

    engine: Engine
    consumer_generation_id: int


def engine_of(app: Any) -> Engine:
    """The engine of a Faust app made by `create_app`."""
    return cast(EngineApp, app).engine


class FetchConsumer(Consumer):
    """A Faust consumer that hands each fetch of one partition on as one message.

    Faust's cost per message is then paid per fetch. Back-pressure is the engine's: a partition is asked for more only
    while its agents have room, instead of Faust's buffer limits, which stop for a second when everything is full.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.engine = engine_of(self.app)
        self._wake = asyncio.Event()
        self._passed: dict[TP, int] = {}
        self._has_takers = False

    # ---- for subclasses

    def take(self, partitions: Sequence[TP]) -> Mapping[TP, Sequence[Record]]:
        """Records that are here already, without waiting; the position moves behind them."""
        raise NotImplementedError

    async def wait_for_records(self) -> None:
        """Return when there may be something to take; may return early."""
        raise NotImplementedError

    def position_of(self, tp: TP) -> int | None:
        """The next offset to be fetched, transaction markers passed; None where there is none yet."""
        raise NotImplementedError

    # ---- Faust's side

    async def _getmany(self, active_partitions: set[TP] | None, timeout: float) -> Mapping[TP, list[Fetched]]:
        fetched = self._take_for_tasks()
        self.engine.polled(tp.partition for tp in fetched)
        if not fetched:
            try:
                async with asyncio.timeout(timeout):
                    await self._wait()
            except TimeoutError:
                return {}
            fetched = self._take_for_tasks()
            self.engine.polled(tp.partition for tp in fetched)
        return fetched

    def _take_for_tasks(self) -> dict[TP, list[Fetched]]:
        tasks = {tp: task for tp in self.assignment() if (task := self.engine.task_for(tp.topic, tp.partition))}
        self._has_takers = bool(tasks)
        taken = self.take(list(tasks))
        fetched: dict[TP, list[Fetched]] = {}
        for tp, task in tasks.items():
            # What one partition raises ends its task, and no other.
            task.life.background.call(self._hand_over, tp, task, taken.get(tp), fetched)
        return fetched

    def _hand_over(
        self, tp: TP, task: PartitionTask, records: Sequence[Record] | None, fetched: dict[TP, list[Fetched]]
    ) -> None:
        """Tell a task of its records, and of what the transport has passed without any."""
        position = self.position_of(tp)
        if records:
            next_offset = max(records[-1].offset + 1, position or 0)
            if not task.dispatch.linger(tp.topic, records, next_offset):
                fetched[tp] = [task.dispatch.fetched(tp.topic, records, next_offset)]
        elif position is not None and position != self._passed.get(tp):
            task.dispatch.passed(tp.topic, position)
        if position is not None and not task.dispatch.is_busy_with(tp.topic):
            self._passed[tp] = position

    async def _wait(self) -> None:
        """Wait until there may be something to take, and somebody to take it."""
        self._wake.clear()
        waiting: list[asyncio.Future[Any]] = [asyncio.ensure_future(self._wake.wait())]
        if self._has_takers:
            waiting.append(asyncio.ensure_future(self.wait_for_records()))
        try:
            done, _ = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            for error in map(error_of, done):
                if isinstance(error, Exception):
                    raise error
        finally:
            for future in waiting:
                future.cancel()

    def _to_message(self, tp: TP, fetched: Fetched) -> ConsumerMessage:
        last = fetched.records[-1]
        value: Any = fetched  # the whole fetch stands where Faust expects a record's bytes
        return ConsumerMessage(
            tp.topic, tp.partition, last.offset, last.timestamp_ms / 1000, 0, None, None, value, None, 0, 0, tp,
            generation_id=self.app.consumer_generation_id,
        )  # fmt: skip

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Commit before anybody else may own the partitions."""
        await self.engine.revoked()
        await super().on_partitions_revoked(revoked)

    def on_buffer_full(self, tp: TP) -> None:
        """Nothing: see the class."""

    def on_buffer_drop(self, tp: TP) -> None:
        """Nothing: see the class."""

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        return True  # offsets are committed by the partition tasks, in their transactions

    async def perform_seek(self) -> None:
        """Nothing: the engine seeks every partition to its agents' positions."""

    async def seek_to_committed(self) -> Mapping[TP, int]:
        """Nothing: see perform_seek."""
        return {}

    async def _seek(self, partition: TP, offset: int) -> None:
        self.seek_now(partition, offset)

    async def seek_wait(self, partitions: Mapping[TP, int]) -> None:
        """Go on fetching at these offsets."""
        for tp, offset in partitions.items():
            self.seek_now(tp, offset)

    def _new_topicpartition(self, topic: str, partition: int) -> TP:
        return TP(topic, partition)

    async def position(self, tp: TP) -> int | None:
        """The next offset to be fetched."""
        return self.position_of(tp)

    def key_partition(self, topic: str, key: bytes | None, partition: int | None = None) -> int | None:
        """The partition of `key`."""
        return partition if partition is not None else partition_for(key or b"", self.engine.settings.partitions)

    # ---- the engine's side (TransportControl)

    def seek_now(self, tp: TP, offset: int) -> None:
        """Move the transport's own position."""
        raise NotImplementedError

    def seek(self, topic: str, partition: int, offset: int) -> None:  # type: ignore[override]
        """Go on fetching at `offset`."""
        tp = TP(topic, partition)
        if tp in self.assignment():
            self.seek_now(tp, offset)
            self._read_offset[tp] = offset or None
            self._passed.pop(tp, None)

    def clients(self) -> Sequence[ClientState]:
        """How the consumer's client does; empty where there is none."""
        return ()

    def wake(self) -> None:
        """Look again at what can be fetched."""
        self._wake.set()

    def request_rejoin(self) -> bool:
        """Join the group anew; False where there is no group."""
        return False

    def deliver(self, fetched: Fetched) -> None:
        """Hand a fetch that was not taken from the log to the agents of its topic, past Faust's check of offsets."""
        message = self._to_message(TP(fetched.topic, fetched.dispatch.life.number), fetched)
        fetched.dispatch.life.background.run(self._deliver(message), f"delivery of {fetched.topic}")

    async def _deliver(self, message: ConsumerMessage) -> None:
        await self.callback(message)


class PublishProducer(Producer):
    """Faust's producer, for agents' replies and `topic.send`: one record at a time through the broker's publish."""

    async def send(
        self,
        topic: str,
        key: bytes | None,
        value: bytes | None,
        partition: int | None,
        timestamp: float | None,
        headers: Any,
        *,
        transactional_id: str | None = None,
    ) -> Awaitable[RecordMetadata]:
        """Publish one record; the future resolves with where it is."""
        engine = engine_of(self.app)
        number = partition if partition is not None else engine.partition_for(key or b"")
        pairs = list(headers.items() if isinstance(headers, Mapping) else headers or ())
        (position,) = await engine.broker.publish(topic, number, [(key, value, pairs)])
        future: asyncio.Future[RecordMetadata] = asyncio.get_running_loop().create_future()
        future.set_result(RecordMetadata(topic, number, TP(topic, number), position.offset))
        return future

    async def send_and_wait(self, *args: Any, **kwargs: Any) -> RecordMetadata:
        """Publish one record and wait for it."""
        return await (await self.send(*args, **kwargs))

    async def flush(self) -> None:
        """Send what Faust has buffered."""
        await self.buffer.flush()

    async def create_topic(self, topic: str, *args: Any, **kwargs: Any) -> None:
        """Nothing: the engine creates all topics at start."""

    def key_partition(self, topic: str, key: bytes) -> TP:
        """The partition of `key`."""
        return TP(topic, engine_of(self.app).partition_for(key))

    def supports_headers(self) -> bool:
        """Always."""
        return True


class EngineTransport(base.Transport):
    """Base of the project's transports."""

    Producer = PublishProducer
