"""What the embedded log keeps in memory: everything but the records."""

from dataclasses import dataclass

import msgspec

from engine.log.embedded.errors import LogDamaged, LogUnavailable
from engine.log.embedded.layout import LAYOUT_VERSION, PartitionState, StoredTopic, encode, partition_key
from engine.log.embedded.storage import Storage

TopicPartition = tuple[str, int]


@dataclass(slots=True)
class Topic:
    """A topic in memory; `retired` once it was deleted or loaded again, so that running maintenance lets go of it."""

    stored: StoredTopic
    partitions: list[PartitionState]
    retired: bool = False


@dataclass(slots=True)
class LogState:
    """Topics by name, next offsets by (group, topic, partition), producer epochs by transactional id."""

    topics: dict[str, Topic]
    next_topic_number: int
    committed: dict[tuple[str, str, int], int]
    epochs: dict[str, int]

    def ends(self) -> dict[TopicPartition, int]:
        """End offset of every partition."""
        return {
            (name, partition): state.end
            for name, topic in self.topics.items()
            for partition, state in enumerate(topic.partitions)
        }


def load_state(storage: Storage) -> LogState:
    """Read the state from the storage, marking a new storage as one of this layout version.

    Raises LogUnavailable if another layout version wrote it.
    """
    version = _number(storage, b"v")
    if version is None:
        if next(storage.scan(b"j", b"\xff"), None) is not None:
            raise LogDamaged(
                "the log has rows, and does not say of which layout. Restore the whole data folder from a backup"
            )
        storage.write([(b"v", encode(LAYOUT_VERSION))])
    elif version != LAYOUT_VERSION:
        raise LogUnavailable(
            f"the log was written with layout {version}, this program reads {LAYOUT_VERSION}: "
            "use the version that wrote it; a new data folder would begin without what is in this one"
        )
    decode = msgspec.msgpack.decode
    return LogState(
        topics=_load_topics(storage),
        next_topic_number=_number(storage, b"n") or 0,
        committed={
            decode(key[1:], type=tuple[str, str, int]): decode(value, type=int)
            for key, value in storage.scan(b"o", b"p")
        },
        epochs={key[1:].decode(): decode(value, type=int) for key, value in storage.scan(b"e", b"f")},
    )


def _load_topics(storage: Storage) -> dict[str, Topic]:
    # A partition has no state row before its first write.
    states = {key: msgspec.msgpack.decode(value, type=PartitionState) for key, value in storage.scan(b"p", b"q")}
    topics = {}
    for key, value in storage.scan(b"t", b"u"):
        stored = msgspec.msgpack.decode(value, type=StoredTopic)
        keys = [partition_key(stored.number, partition) for partition in range(stored.config.partitions)]
        topics[key[1:].decode()] = Topic(stored, [states.get(key, PartitionState()) for key in keys])
    return topics


def _number(storage: Storage, key: bytes) -> int | None:
    for _, value in storage.scan(key, key + b"\0"):
        return msgspec.msgpack.decode(value, type=int)
    return None
