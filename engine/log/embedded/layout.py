"""The embedded log's records, its stored rows and the keys they are stored under.

Every key begins with one byte for its kind; numbers are big-endian, so that byte order is offset order:

    v                                    layout version
    n                                    next topic number
    t <topic name>                       StoredTopic
    p <topic number> <partition>         PartitionState
    r <topic number> <partition> <last>  Row: the records of one append, or of several after compaction
    o <group, topic, partition>          committed offset
    e <transactional id>                 producer epoch

A row's key holds the last offset it was written with, not the first: one forward seek to (partition, offset) then finds
the row that contains the offset, or the next one where compaction left a gap.
"""

import struct
from collections.abc import Iterable, Sequence
from itertools import chain
from types import NoneType
from typing import NamedTuple

import msgspec

from engine.log.embedded.errors import KeyRequired, RecordTooLarge

LAYOUT_VERSION = 1
ROW_BYTES_MAX = 256 * 1024
RECORD_BYTES_MAX = 1024 * 1024

Headers = tuple[tuple[str, bytes], ...]

_ROW_KEY = struct.Struct(">cIIQ")
_PARTITION_KEY = struct.Struct(">cII")
_TOPIC_ROWS = struct.Struct(">cI")


class Record(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """A stored record; `timestamp_ms` is milliseconds since 1970, a `value` of None is a tombstone."""

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: Headers


class NewRecord(NamedTuple):
    """A record to append; without `timestamp_ms` it gets the log's time of the append."""

    key: bytes | None
    value: bytes | None
    headers: Headers = ()
    timestamp_ms: int | None = None

    @property
    def size_bytes(self) -> int:
        """Bytes of key, value and headers."""
        headers = sum(len(name.encode()) + len(value) for name, value in self.headers)
        return len(self.key or b"") + len(self.value or b"") + headers


class TopicConfig(msgspec.Struct, frozen=True):
    """A topic's settings; `retention_ms` None keeps records for ever, `max_record_bytes` is key + value + headers."""

    partitions: int
    compacted: bool = False
    retention_ms: int | None = None
    max_record_bytes: int = RECORD_BYTES_MAX


class StoredTopic(msgspec.Struct, frozen=True, array_like=True):
    """A topic as stored; `uid` differs from that of a deleted topic of the same name."""

    number: int
    uid: str
    config: TopicConfig


class PartitionState(msgspec.Struct, frozen=True, gc=False, array_like=True):
    """Offsets of a partition, `end` exclusive; the other fields tell compaction what it has done and what waits."""

    start: int = 0
    end: int = 0
    cleaned_to: int = 0
    clean_bytes: int = 0
    dirty_bytes: int = 0


class Row(msgspec.Struct, frozen=True, array_like=True):
    """Records in offset order, never empty; `tombstones_ms`: offset of a tombstone to when compaction first met it."""

    records: list[Record]
    tombstones_ms: dict[int, int]


encode = msgspec.msgpack.Encoder().encode
decode_row = msgspec.msgpack.Decoder(Row).decode


def row_key(number: int, partition: int, last_offset: int) -> bytes:
    """Key of the row that ends with `last_offset`."""
    return _ROW_KEY.pack(b"r", number, partition, last_offset)


def last_offset_of(key: bytes) -> int:
    """The last offset in a row's key."""
    return int.from_bytes(key[-8:], "big")


def topic_key(name: str) -> bytes:
    """Key of a topic's StoredTopic."""
    return b"t" + name.encode()


def partition_key(number: int, partition: int) -> bytes:
    """Key of a partition's PartitionState."""
    return _PARTITION_KEY.pack(b"p", number, partition)


def rows_of_topic(number: int) -> tuple[bytes, bytes]:
    """Half-open key range of all rows of a topic."""
    return _TOPIC_ROWS.pack(b"r", number), _TOPIC_ROWS.pack(b"r", number + 1)


def offset_key(group: str, topic: str, partition: int) -> bytes:
    """Key of a committed offset."""
    return b"o" + encode((group, topic, partition))


def epoch_key(transactional_id: str) -> bytes:
    """Key of a producer epoch."""
    return b"e" + transactional_id.encode()


def check_records(topic: str, config: TopicConfig, records: Sequence[NewRecord]) -> None:
    """Refuse what the log could not give back or the topic does not take.

    Raises TypeError (a row with a text key could be written but never read again), KeyRequired, RecordTooLarge.
    """
    keys, values, headers, timestamps = zip(*records, strict=True)
    _check_types("key and value", {bytes, NoneType}, chain(keys, values))
    _check_types("timestamp_ms", {int, NoneType}, timestamps)
    names, contents = zip(*chain.from_iterable(headers), strict=True) if any(headers) else ((), ())
    _check_types("header name", {str}, names)
    _check_types("header value", {bytes}, contents)
    if config.compacted and None in keys:
        raise KeyRequired(f"topic {topic!r} is compacted: every record needs a key")
    # All records together are mostly smaller than one may be: then there is nothing to look at one by one.
    total_bytes = sum(map(len, filter(None, chain(keys, values, contents)))) + sum(len(name.encode()) for name in names)
    for record in records if total_bytes > config.max_record_bytes else ():
        if (size := record.size_bytes) > config.max_record_bytes:
            raise RecordTooLarge(
                f"a record of {size:,} bytes is larger than the {config.max_record_bytes:,} bytes "
                f"that topic {topic!r} allows; send less, or raise the topic's max_record_bytes"
            )


def _check_types(what: str, allowed: set[type], values: Iterable[object]) -> None:
    if wrong := set(map(type, values)) - allowed:
        names = " or ".join(sorted(kind.__name__ for kind in allowed))
        raise TypeError(f"a record's {what} must be {names}, not {wrong.pop().__name__}")


def place_records(records: Sequence[NewRecord], base_offset: int, now_ms: int) -> list[Record]:
    """Give new records their offsets and times."""
    keys, values, headers, timestamps = zip(*records, strict=True)
    offsets = range(base_offset, base_offset + len(records))
    times = [now_ms if timestamp_ms is None else timestamp_ms for timestamp_ms in timestamps]
    return list(map(Record, offsets, times, keys, values, headers))


def encode_rows(records: Sequence[Record]) -> list[tuple[int, bytes]]:
    """Cut records into rows of at most ROW_BYTES_MAX (or of one record); (last offset, encoded row) of each."""
    encoded = encode((records, {}))
    parts = -(-len(encoded) // ROW_BYTES_MAX)
    if parts == 1 or len(records) == 1:
        return [(records[-1].offset, encoded)]
    step = -(-len(records) // parts)
    return [row for first in range(0, len(records), step) for row in encode_rows(records[first : first + step])]
