"""Reading changelogs from Kafka, outside of any consumer group."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError, OffsetOutOfRangeError

from engine.declare.settings import Settings
from engine.log.kafka.clients import BrokersInReach, stop
from engine.log.kafka.connection import connection_options
from engine.log.ports import Reader, Record, TransportError

FETCH_BYTES_MAX = 4 << 20  # of one partition: a restore wants large answers


class KafkaReader(Reader):
    """Reads committed records of one partition number, without a group."""

    def __init__(self, settings: Settings, partition: int, topics: Sequence[str]) -> None:
        self._settings = settings
        self._tps = [TopicPartition(topic, partition) for topic in topics]
        self._consumer: AIOKafkaConsumer | None = None
        self._positions: dict[TopicPartition, int] = {}
        self._brokers = BrokersInReach()

    async def start(self) -> None:
        """Connect."""
        self._consumer = AIOKafkaConsumer(
            **connection_options(self._settings),
            group_id=None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=FETCH_BYTES_MAX,
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
        if self._brokers.are_lost(self._consumer._client):
            raise TransportError("cannot read changelogs: none of the brokers that the reader knows answers")
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
            await stop(self._consumer)


def _records(consumed: Iterable[Any]) -> list[Record]:
    return [Record(r.offset, r.timestamp, r.key, r.value, r.headers) for r in consumed]
