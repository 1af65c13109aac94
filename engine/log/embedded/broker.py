"""The embedded log behind the engine's ports: memory:// and embedded://."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path

from engine.declare.settings import Settings
from engine.log.embedded.damage import LogDamage
from engine.log.embedded.errors import LogDamaged, LogReadFailed, LogUnavailable
from engine.log.embedded.log import (
    Log,
    LogError,
    MemoryStorage,
    NewRecord,
    RecordTooLarge,
    RocksStorage,
    TopicConfig,
    TopicExistsDifferently,
)
from engine.log.embedded.log import ProducerFenced as LogFenced
from engine.log.ports import (
    Broker,
    ClientState,
    OpenTransaction,
    Outgoing,
    PartitionsMismatch,
    Position,
    ProducerFenced,
    Reader,
    Record,
    RecordsTooLarge,
    TopicSpec,
    TransactionalProducer,
    TransportError,
    TransportUnusable,
)

log = logging.getLogger(__name__)

MAINTENANCE_INTERVAL_S = 60.0


class EmbeddedBroker(Broker):
    """The embedded log of one process, as the engine and the web view see it."""

    commits_in_loop = True

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self.damaged = LogDamage(lambda topic, partition, offset: self.log.read(topic, partition, offset))
        self._log: Log | None = None
        self._maintenance: asyncio.Task[None] | None = None
        self._read: set[str] = set()  # topics that agents of the group read

    @property
    def log(self) -> Log:
        """The open log."""
        if self._log is None:
            raise TransportError("the embedded log is not open")
        return self._log

    @property
    def lost_end_at(self) -> float:
        """When it was last accepted that the log had lost its end, in seconds since 1970; 0 for never."""
        return self.log.lost_end_at

    async def start(self) -> None:
        """Open the log; raises TransportError with what to do when the folder cannot be used."""
        if self._log is not None:
            return
        try:
            in_memory = self._settings.transport == "memory"
            if not in_memory:
                _check_beside(self._settings)
            storage = (
                MemoryStorage()
                if in_memory
                else RocksStorage(self._settings.data_dir / "log", application=self._settings.application)
            )
            self._log = Log(storage, delete_retention_ms=int(self._settings.delete_retention * 1000))
        except LogError as error:
            raise TransportUnusable(str(error)) from error
        self._maintenance = asyncio.create_task(self._maintain(), name="maintenance of the embedded log")

    async def _maintain(self) -> None:
        while True:
            await asyncio.sleep(MAINTENANCE_INTERVAL_S)
            try:
                for _ in self.maintenance():
                    await asyncio.sleep(0)
            except Exception:
                log.exception("maintenance of the embedded log failed; tried again in %.0f s", MAINTENANCE_INTERVAL_S)

    def maintenance(self) -> Iterator[None]:
        """One round of retention and compaction, in small steps; what agents have not passed stays."""
        return self.log.maintain(needed_from=self._needed_from)

    def _needed_from(self, topic: str, partition: int) -> int | None:
        """The first offset that an agent has not passed; the beginning while none has passed anything."""
        if topic not in self._read:
            return None
        return self.log.committed(self._settings.app_id, topic, partition) or 0

    async def stop(self) -> None:
        """Close the log."""
        self.damaged.close()
        if self._maintenance is not None:
            self._maintenance.cancel()
        if self._log is not None:
            self._log.close()
            self._log = None

    async def create_topics(self, topics: Sequence[TopicSpec]) -> None:
        """Create what is missing."""
        for topic in topics:
            config = TopicConfig(topic.partitions, topic.compacted, topic.retention_ms, topic.record_bytes_max)
            try:
                self.log.create_topic(topic.name, config)
            except TopicExistsDifferently as error:
                raise PartitionsMismatch(str(error)) from error
        self._read |= {topic.name for topic in topics if topic.is_read}

    async def topics(self) -> Mapping[str, int]:
        """All topics with their number of partitions."""
        return {name: config.partitions for name, config in self.log.topics().items()}

    async def topic_ids(self, names: Collection[str]) -> Mapping[str, str]:
        """Ids of those of these topics that exist."""
        existing = self.log.topics()
        return {name: self.log.topic_uid(name) for name in names if name in existing}

    async def bounds(self, partitions: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], tuple[int, int]]:
        """First and next offset of each of these partitions."""
        log = self.log
        return {
            (topic, number): (log.start_offset(topic, number), log.end_offset(topic, number))
            for topic, number in partitions
        }

    def clients(self) -> Sequence[ClientState]:
        """None: the log is in this process."""
        return ()

    async def clock_ahead_s(self) -> None:
        """Nothing: records have this machine's time."""

    async def facts(self, topics: Sequence[str]) -> None:
        """Nothing: the log keeps topics as they were declared, in one copy."""

    def producer(self, partition: int) -> TransactionalProducer:
        """A producer for a partition number, not yet started."""
        return self.named_producer(f"{self._settings.app_id}-{partition}")

    def named_producer(self, transactional_id: str, partition: int = 0) -> TransactionalProducer:
        """A producer of this transactional id, not yet started."""
        return EmbeddedProducer(self, transactional_id, self._settings.app_id)

    def reader(self, partition: int, topics: Sequence[str]) -> Reader:
        """A reader of a partition number, not yet started."""
        return EmbeddedReader(self, partition, topics)

    def read(self, topic: str, partition: int, offset: int) -> tuple[list[Record], int]:
        """Records from `offset` on, and the offset to read next; raises TransportError for damage, else as Log.read.

        A partition that is damaged is read no more, and nothing is published into its number, until it can be read.
        """
        if (damage := self.damaged.text(topic, partition)) is not None:
            raise TransportError(damage)
        try:
            return self.log.read(topic, partition, offset)
        except LogReadFailed as error:
            self.damaged.add(topic, partition, offset, error)
            raise TransportError(str(error)) from error
        except LogUnavailable as error:  # it could not be opened again after a failed write
            raise TransportError(str(error)) from error

    async def end_offset(self, topic: str, partition: int) -> int:
        """The next offset to be written."""
        return self.log.end_offset(topic, partition)

    async def publish(self, topic: str, partition: int, records: Sequence[Outgoing]) -> list[Position]:
        """Append records; they are durable on return."""
        if (damage := self.damaged.text_of_number(partition)) is not None:
            raise TransportError(damage)
        try:
            base = self.log.append(topic, partition, _new_records(records))
        except RecordTooLarge as error:
            raise RecordsTooLarge(str(error)) from error
        except LogError as error:
            self.damaged.write_failed(error)
            raise TransportError(str(error)) from error
        return [Position(topic, partition, base + index) for index in range(len(records))]

    async def members(self, group: str) -> Sequence[str]:
        """Nobody else: the log's folder is locked by this process."""
        return ()

    async def committed(self, offsets: Sequence[tuple[str, int]]) -> Mapping[tuple[str, int], int]:
        """The group's committed offsets."""
        group = self._settings.app_id
        found = {(topic, number): self.log.committed(group, topic, number) for topic, number in offsets}
        return {key: offset for key, offset in found.items() if offset is not None}

    async def open_transactions(self, topics: Mapping[str, int]) -> Sequence[OpenTransaction]:
        """None: a transaction is one append."""
        return ()

    async def writers(self) -> Mapping[int, int]:
        """Nothing: producers have no ids."""
        return {}


def _check_beside(settings: Settings) -> None:
    """Raise LogDamaged where stores are left of a log that is gone: a new log would be an empty, healthy system."""
    folder, stores = settings.data_dir / "log", settings.data_dir / "stores"
    if not folder.exists() and has_stores(stores):
        raise LogDamaged(
            f"{stores} holds what belongs to a log, and there is no log in {folder}. Restore the whole data folder "
            f"from a backup, or set {settings.variable('data_dir')} to it; to begin anew beside what was, move "
            f"{stores} away."
        )


def has_stores(folder: Path) -> bool:
    """Whether a folder, which may not exist, holds stores of partitions."""
    return any(folder.glob("[0-9]*/CURRENT"))


class EmbeddedProducer(TransactionalProducer):
    """Collects a transaction and gives it to the log in one atomic write."""

    markers = 0

    def __init__(self, broker: EmbeddedBroker, transactional_id: str, group: str) -> None:
        self._broker = broker
        self._transactional_id = transactional_id
        self._group = group
        self._epoch = -1
        self._appends: list[tuple[str, int, Sequence[NewRecord]]] = []
        self._offsets: dict[tuple[str, int], int] = {}

    async def settle(self, changelogs: Sequence[str], distrust: Callable[[], Awaitable[None]]) -> None:
        """Nothing: a transaction is one append, so it is there or it is not."""

    async def start(self) -> None:
        """Become the writer and fence the one before."""
        try:
            self._epoch = self._broker.log.init_producer(self._transactional_id)
        except LogError as error:
            self._broker.damaged.write_failed(error)
            raise TransportError(str(error)) from error

    async def begin(self) -> None:
        """Open a transaction."""
        self._appends, self._offsets = [], {}

    async def send(self, batches: Mapping[tuple[str, int], Sequence[Outgoing]]) -> None:
        """Note records for the transaction."""
        for (topic, partition), records in batches.items():
            self._appends.append((topic, partition, _new_records(records)))

    async def send_offsets(self, offsets: Mapping[tuple[str, int], int]) -> None:
        """Note the group's offsets for the transaction."""
        self._offsets.update(offsets)

    async def flush(self) -> None:
        """Nothing to wait for."""

    async def commit(self) -> Mapping[tuple[str, int], int]:
        """One atomic write."""
        appends, offsets, self._appends, self._offsets = self._appends, self._offsets, [], {}
        try:
            bases = self._broker.log.commit(self._transactional_id, self._epoch, appends, offsets, self._group)
        except LogFenced as error:
            raise ProducerFenced(str(error)) from error
        except LogError as error:
            self._broker.damaged.write_failed(error)
            raise TransportError(str(error)) from error
        return {
            (topic, partition): base + len(records)
            for (topic, partition, records), base in zip(appends, bases, strict=True)
        }

    async def close(self) -> None:
        """Forget an open transaction."""
        self._appends, self._offsets = [], {}


def _new_records(records: Sequence[Outgoing]) -> list[NewRecord]:
    return [NewRecord(key, value, tuple(headers)) for key, value, headers in records]


class EmbeddedReader(Reader):
    """Reads one partition number of some topics."""

    def __init__(self, broker: EmbeddedBroker, partition: int, topics: Sequence[str]) -> None:
        self._broker = broker
        self._partition = partition
        self._positions = dict.fromkeys(topics, 0)

    async def start(self) -> None:
        """Nothing to connect to."""

    async def bounds(self) -> Mapping[str, tuple[int, int]]:
        """First and next offset of each topic."""
        log, partition = self._broker.log, self._partition
        return {
            topic: (log.start_offset(topic, partition), log.end_offset(topic, partition)) for topic in self._positions
        }

    def seek(self, topic: str, offset: int) -> None:
        """Go on reading at `offset`."""
        self._positions[topic] = offset

    async def fetch(self) -> Mapping[str, tuple[Sequence[Record], int]]:
        """The next records of each topic that has any."""
        await asyncio.sleep(0)
        found: dict[str, tuple[Sequence[Record], int]] = {}
        for topic, offset in self._positions.items():
            records, position = self._broker.read(topic, self._partition, offset)
            if position != offset:
                self._positions[topic] = position
                found[topic] = records, position
        if not found:
            await asyncio.sleep(0.01)
        return found

    async def close(self) -> None:
        """Nothing to let go of."""
