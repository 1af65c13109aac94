"""The embedded log: partitioned, append-only topics with Kafka's observable behaviour, in one process."""

import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from uuid import uuid4

import msgspec

from engine.log.embedded.errors import (
    KeyRequired,
    LogError,
    LogLocked,
    LogReadFailed,
    LogUnavailable,
    LogWriteFailed,
    OffsetOutOfRange,
    ProducerFenced,
    RecordTooLarge,
    TopicExistsDifferently,
    UnknownTopicOrPartition,
)
from engine.log.embedded.layout import (
    NewRecord,
    PartitionState,
    Record,
    StoredTopic,
    TopicConfig,
    check_records,
    decode_row,
    encode,
    encode_rows,
    epoch_key,
    last_offset_of,
    offset_key,
    partition_key,
    place_records,
    row_key,
    rows_of_topic,
    topic_key,
)
from engine.log.embedded.maintenance import compact_partition, retain_partition
from engine.log.embedded.state import LogState, Topic, TopicPartition, load_state
from engine.log.embedded.storage import MemoryStorage, RocksStorage, Storage

__all__ = [
    "KeyRequired",
    "Log",
    "LogError",
    "LogLocked",
    "LogReadFailed",
    "LogUnavailable",
    "LogWriteFailed",
    "MemoryStorage",
    "NewRecord",
    "OffsetOutOfRange",
    "ProducerFenced",
    "Record",
    "RecordTooLarge",
    "RocksStorage",
    "Storage",
    "TopicConfig",
    "TopicExistsDifferently",
    "UnknownTopicOrPartition",
]

logger = logging.getLogger(__name__)

Append = tuple[str, int, Sequence[NewRecord]]
OnAppended = Callable[[frozenset[TopicPartition]], None]

DELETE_RETENTION_MS = 24 * 60 * 60 * 1000

_TOPIC_NAME = re.compile(r"[a-zA-Z0-9._-]{1,249}")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


class Log:
    """Topics, records, consumer groups' offsets and producers' epochs over one storage.

    Synchronous and for one thread: every call is atomic to the event loop it is made from. Every change is one atomic
    write, so that a crash leaves all of it or nothing; memory follows only after the write has succeeded. How durable
    a write is depends on the storage (see RocksStorage).

    Changing calls raise LogWriteFailed when the storage refuses, and LogLocked or LogUnavailable when it cannot be
    opened again after that. Calls that name a topic raise UnknownTopicOrPartition.
    """

    def __init__(
        self,
        storage: Storage,
        clock_ms: Callable[[], int] = _now_ms,
        delete_retention_ms: int = DELETE_RETENTION_MS,
    ) -> None:
        """Load what the storage holds; raises LogUnavailable if another version of the layout wrote it."""
        self._storage = storage
        self._clock_ms = clock_ms
        self._delete_retention_ms = delete_retention_ms
        self._subscribers: list[OnAppended] = []
        self._state = self._load()

    # Topics

    def create_topic(self, name: str, config: TopicConfig) -> None:
        """Create a topic, or leave an existing one with as many partitions as it is, settings included.

        Raises TopicExistsDifferently, and ValueError for a name or number that Kafka would not take either.
        """
        self._recover()
        if (existing := self._state.topics.get(name)) is not None:
            if existing.stored.config.partitions != config.partitions:
                raise TopicExistsDifferently(
                    f"topic {name!r} has {existing.stored.config.partitions} partitions, not {config.partitions}: "
                    "a key's records would be spread anew. Set the number of partitions back; "
                    "a new data folder would begin without what is in this one."
                )
            return
        if not _TOPIC_NAME.fullmatch(name) or name in {".", ".."}:
            raise ValueError(f"{name!r} is not a topic name: 1 to 249 letters, digits, '.', '_' or '-'")
        if config.partitions < 1:
            raise ValueError(f"topic {name!r} needs at least one partition, not {config.partitions}")
        topic = Topic(
            StoredTopic(number=self._state.next_topic_number, uid=uuid4().hex, config=config),
            [PartitionState()] * config.partitions,
        )
        next_number = self._state.next_topic_number + 1
        self._storage.write([(topic_key(name), encode(topic.stored)), (b"n", encode(next_number))])
        self._state.topics[name] = topic
        self._state.next_topic_number = next_number

    def delete_topic(self, name: str) -> None:
        """Delete a topic with its records and what groups have committed for it."""
        self._recover()
        topic = self._topic(name)
        committed = [committed for committed in self._state.committed if committed[1] == name]
        number = topic.stored.number
        deletes = [
            topic_key(name),
            *(partition_key(number, partition) for partition in range(len(topic.partitions))),
            *(offset_key(*key) for key in committed),
        ]
        self._storage.write([], deletes, delete_range=rows_of_topic(number))
        topic.retired = True
        del self._state.topics[name]
        for key in committed:
            del self._state.committed[key]

    def topics(self) -> Mapping[str, TopicConfig]:
        """Every topic's settings by name."""
        return {name: topic.stored.config for name, topic in self._state.topics.items()}

    def topic_uid(self, name: str) -> str:
        """An id that a deleted and recreated topic of the same name does not share."""
        return self._topic(name).stored.uid

    # Writing

    def append(self, topic: str, partition: int, records: Sequence[NewRecord]) -> int:
        """Append records, all or none; the offset of the first.

        Raises RecordTooLarge, KeyRequired (compacted topic), TypeError (not bytes).
        """
        self._recover()
        return self._write([(topic, partition, records)], {}, "")[0]

    def init_producer(self, transactional_id: str) -> int:
        """Start a producer and fence the earlier ones with this id; its epoch, which commits must show."""
        self._recover()
        epoch = self._state.epochs.get(transactional_id, -1) + 1
        self._storage.write([(epoch_key(transactional_id), encode(epoch))])
        self._state.epochs[transactional_id] = epoch
        return epoch

    def commit(
        self,
        transactional_id: str,
        epoch: int,
        appends: Sequence[Append],
        offsets: Mapping[TopicPartition, int],
        group: str,
    ) -> list[int]:
        """A whole transaction in one write: appends and the group's next offsets; the first offset of each append.

        Raises ProducerFenced if another producer with this id was started since, and what `append` raises.
        """
        self._recover()
        if (current := self._state.epochs.get(transactional_id)) != epoch:
            raise ProducerFenced(f"producer {transactional_id!r} has epoch {epoch}, but {current} is the current one")
        return self._write(appends, offsets, group)

    def commit_offsets(self, group: str, offsets: Mapping[TopicPartition, int]) -> None:
        """Commit a group's next offsets to read, without a transaction."""
        self._recover()
        self._write([], offsets, group)

    # Reading

    def read(
        self, topic: str, partition: int, offset: int, *, max_records: int = 10_000, max_bytes: int = 1024 * 1024
    ) -> tuple[list[Record], int]:
        """Records from `offset` on (from the start offset if that is higher) and the offset to read next.

        No records means that the end is reached. The next offset passes what compaction has dropped. Bytes are
        counted by stored row of at most 256 KiB and cover at least one row, so that a reader always gets ahead.
        Raises OffsetOutOfRange behind the end, LogReadFailed if stored rows are damaged.
        """
        found = self._topic(topic, partition)
        state = found.partitions[partition]
        if offset > state.end:
            raise OffsetOutOfRange(f"{topic}[{partition}] ends at {state.end}; offset {offset} does not exist yet")
        position = max(offset, state.start)
        records: list[Record] = []
        if position == state.end:
            return records, position
        number = found.stored.number
        left_bytes = max_bytes
        for key, value in self._storage.scan(
            row_key(number, partition, position), row_key(number, partition, state.end)
        ):
            left_bytes -= len(value)
            if records and left_bytes < 0:
                return records, position
            rows = decode_row(value).records
            if rows[0].offset > position and not found.stored.config.compacted:
                raise _lacking(topic, partition, position, rows[0].offset)
            records += rows if rows[0].offset >= position else [row for row in rows if row.offset >= position]
            if len(records) > max_records:
                return records[:max_records], records[max_records].offset
            position = last_offset_of(key) + 1
            if position == state.end:
                return records, position
        # The last row before the end is never dropped, so that a gap here is a loss, and must not look like an end.
        raise _lacking(topic, partition, position, state.end)

    def start_offset(self, topic: str, partition: int) -> int:
        """The lowest offset that retention has left (the end, when nothing is)."""
        return self._topic(topic, partition).partitions[partition].start

    def end_offset(self, topic: str, partition: int) -> int:
        """The offset that the next record will get."""
        return self._topic(topic, partition).partitions[partition].end

    def committed(self, group: str, topic: str, partition: int) -> int | None:
        """The next offset that a group has committed to read, if any."""
        return self._state.committed.get((group, topic, partition))

    def subscribe(self, on_appended: OnAppended) -> Callable[[], None]:
        """Call back after each write with the partitions that grew; returns how to end that.

        A callback must not block. What it raises is logged: the write has happened and must not look as if it failed.
        """
        self._subscribers.append(on_appended)

        def unsubscribe() -> None:
            if on_appended in self._subscribers:
                self._subscribers.remove(on_appended)

        return unsubscribe

    @property
    def lost_end_at(self) -> float:
        """When it was last accepted that records at the end are lost, in seconds since 1970; 0 for never."""
        return self._storage.lost_end_at

    # Upkeep

    def maintain(
        self,
        min_dirty_ratio: float = 0.5,
        needed_from: Callable[[str, int], int | None] = lambda topic, partition: None,
    ) -> Iterator[None]:
        """Apply retention and compaction to every partition, a millisecond or two of work between two steps.

        `needed_from` gives the first offset of a topic's partition that somebody has still to read, None where nobody
        has: retention keeps it and all behind it.

        Iterate and let the event loop run in between; appends, reads and deletes may happen there. A partition is
        compacted when at least `min_dirty_ratio` (0 to 1) of its bytes came since the last time, one bounded round
        per call.
        """
        self._recover()
        now_ms = self._clock_ms()
        for name, topic in list(self._state.topics.items()):
            config = topic.stored.config
            for partition in range(config.partitions):
                if config.retention_ms is not None and not topic.retired:
                    needed = needed_from(name, partition)
                    yield from retain_partition(self._storage, topic, partition, config.retention_ms, now_ms, needed)
                if config.compacted and not topic.retired:
                    yield from compact_partition(
                        self._storage, topic, partition, self._delete_retention_ms, min_dirty_ratio, now_ms
                    )

    def close(self) -> None:
        """Close the storage; the log is of no use afterwards."""
        self._storage.close()

    # Inside

    def _topic(self, name: str, partition: int = 0) -> Topic:
        topic = self._state.topics.get(name)
        if topic is None:
            raise UnknownTopicOrPartition(f"there is no topic {name!r}")
        if not 0 <= partition < len(topic.partitions):
            raise UnknownTopicOrPartition(f"topic {name!r} has {len(topic.partitions)} partitions, no {partition}")
        return topic

    def _write(self, appends: Sequence[Append], offsets: Mapping[TopicPartition, int], group: str) -> list[int]:
        """One atomic write of appends and offsets; memory follows it, then the subscribers hear of it."""
        now_ms = self._clock_ms()
        puts: list[tuple[bytes, bytes]] = []
        grown: dict[TopicPartition, PartitionState] = {}
        base_offsets = []
        for name, partition, records in appends:
            topic = self._topic(name, partition)
            state = grown.get((name, partition)) or topic.partitions[partition]
            base_offsets.append(state.end)
            if not records:
                continue
            check_records(name, topic.stored.config, records)
            rows = encode_rows(place_records(records, state.end, now_ms))
            puts += [(row_key(topic.stored.number, partition, last), value) for last, value in rows]
            grown[name, partition] = msgspec.structs.replace(
                state,
                end=state.end + len(records),
                dirty_bytes=state.dirty_bytes + sum(len(value) for _, value in rows),
            )
        for (name, partition), state in grown.items():
            puts.append((partition_key(self._state.topics[name].stored.number, partition), encode(state)))
        for (name, partition), offset in offsets.items():
            self._topic(name, partition)
            puts.append((offset_key(group, name, partition), encode(offset)))
        if not puts:
            return base_offsets
        self._storage.write(puts)
        for (name, partition), state in grown.items():
            self._state.topics[name].partitions[partition] = state
        for (name, partition), offset in offsets.items():
            self._state.committed[group, name, partition] = offset
        self._notify(grown)
        return base_offsets

    def _notify(self, grown: Iterable[TopicPartition]) -> None:
        if not (partitions := frozenset(grown)):
            return
        for on_appended in tuple(self._subscribers):
            try:
                on_appended(partitions)
            except Exception:
                logger.exception("A subscriber of the log failed")

    def _recover(self) -> None:
        """After a failed write, read from the storage what has become of it."""
        if not self._storage.failed:
            return
        before = self._state
        self._storage.reopen()
        self._state = self._load()
        for topic in before.topics.values():
            topic.retired = True
        ends = before.ends()
        self._notify(partition for partition, end in self._state.ends().items() if end > ends.get(partition, 0))

    def _load(self) -> LogState:
        try:
            return load_state(self._storage)
        except BaseException:
            self._storage.give_up()  # nothing may be written on the ground of a state that is not the stored one
            raise


def _lacking(topic: str, partition: int, first: int, end: int) -> LogReadFailed:
    return LogReadFailed(f"{topic}[{partition}] lacks records between {first} and {end}: restore a backup")
