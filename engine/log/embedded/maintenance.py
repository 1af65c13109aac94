"""Retention and compaction of one partition of the embedded log, in slices that leave the event loop room to breathe.

Compaction works as Kafka's log cleaner does: it maps the keys of the part not cleaned yet to their newest offsets, then
rewrites everything up to there without the records that a newer one replaces. The last row is left alone, as Kafka
leaves the active segment. A tombstone goes only when `delete_retention_ms` has passed since compaction first met it,
because that is when the older records of its key went: whoever began to read before that still finds the tombstone.
"""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import msgspec

from engine.log.embedded.layout import (
    ROW_BYTES_MAX,
    PartitionState,
    Record,
    Row,
    decode_row,
    encode,
    last_offset_of,
    partition_key,
    row_key,
)
from engine.log.embedded.state import Topic
from engine.log.embedded.storage import Storage

# A slice of this size takes a millisecond or two.
_SLICE_BYTES_MAX = ROW_BYTES_MAX
_SLICE_ROWS_MAX = 100

# The keys of one round, about 50 MB at most; the next round goes on where this one stopped.
_ROUND_KEYS_MAX = 200_000


class _StoredRow(NamedTuple):
    key: bytes
    last_offset: int
    row: Row
    size_bytes: int


def retain_partition(
    storage: Storage, topic: Topic, partition: int, retention_ms: int, now_ms: int, needed_from: int | None = None
) -> Iterator[None]:
    """Drop the leading rows whose newest record is older than `retention_ms` and move the start offset behind them.

    Nothing from the offset `needed_from` on is dropped, however old; None needs nothing.
    """
    state = topic.partitions[partition]
    end = state.end if needed_from is None else min(state.end, needed_from)
    for rows in _slices(storage, topic, partition, state.start, end):
        expired = []
        for stored in rows:
            if max(record.timestamp_ms for record in stored.row.records) >= now_ms - retention_ms:
                break
            expired.append(stored)
        if expired:
            state = topic.partitions[partition]
            start = expired[-1].last_offset + 1
            clean_bytes = sum(stored.size_bytes for stored in expired if stored.last_offset < state.cleaned_to)
            state = msgspec.structs.replace(
                state,
                start=start,
                clean_bytes=state.clean_bytes - clean_bytes,
                dirty_bytes=state.dirty_bytes - (sum(stored.size_bytes for stored in expired) - clean_bytes),
            )
            _write(storage, topic, partition, [], [stored.key for stored in expired], state)
        yield
        if len(expired) < len(rows):
            return


def compact_partition(
    storage: Storage, topic: Topic, partition: int, delete_retention_ms: int, min_dirty_ratio: float, now_ms: int
) -> Iterator[None]:
    """One round of compaction, if the part not cleaned yet is at least `min_dirty_ratio` (0 to 1) of the partition."""
    state = topic.partitions[partition]
    if state.dirty_bytes < min_dirty_ratio * (state.clean_bytes + state.dirty_bytes):
        return
    newest: dict[bytes | None, int] = {}
    clean_to = state.cleaned_to
    mapped_bytes = 0
    for rows in _slices(storage, topic, partition, state.cleaned_to, state.end - 1):
        for stored in rows:
            newest.update((record.key, record.offset) for record in stored.row.records)
            mapped_bytes += stored.size_bytes
        clean_to = rows[-1].last_offset + 1
        yield
        if len(newest) >= _ROUND_KEYS_MAX:
            break
    if clean_to == state.cleaned_to:
        return
    kept_bytes = 0
    for rows in _slices(storage, topic, partition, state.start, clean_to):
        kept_bytes += _compact_rows(storage, topic, partition, rows, newest, delete_retention_ms, now_ms)
        yield
    now = topic.partitions[partition]
    if topic.retired or (now.start, now.cleaned_to) != (state.start, state.cleaned_to):
        return  # retention or another round came between; the next round counts afresh
    state = msgspec.structs.replace(
        now, cleaned_to=clean_to, clean_bytes=kept_bytes, dirty_bytes=now.dirty_bytes - mapped_bytes
    )
    _write(storage, topic, partition, [], [], state)


def _compact_rows(
    storage: Storage,
    topic: Topic,
    partition: int,
    rows: list[_StoredRow],
    newest: Mapping[bytes | None, int],
    delete_retention_ms: int,
    now_ms: int,
) -> int:
    """Put what is to be kept of some adjacent rows into the place of the last one; its size in bytes."""
    before = Row([], {})
    for stored in rows:
        before.records.extend(stored.row.records)
        before.tombstones_ms.update(stored.row.tombstones_ms)
    after = compact(before, newest, delete_retention_ms, now_ms)
    if len(rows) == 1 and len(after.records) == len(before.records) and after.tombstones_ms == before.tombstones_ms:
        return rows[0].size_bytes
    if not after.records:
        _write(storage, topic, partition, [], [stored.key for stored in rows], None)
        return 0
    value = encode(after)
    _write(storage, topic, partition, [(rows[-1].key, value)], [stored.key for stored in rows[:-1]], None)
    return len(value)


def compact(row: Row, newest: Mapping[bytes | None, int], delete_retention_ms: int, now_ms: int) -> Row:
    """The row without records that a newer one replaces and without tombstones that were met long enough ago."""
    expired = {offset for offset, met_ms in row.tombstones_ms.items() if met_ms <= now_ms - delete_retention_ms}

    def is_kept(record: Record) -> bool:
        return newest.get(record.key, -1) <= record.offset and record.offset not in expired

    records = list(filter(is_kept, row.records))
    return Row(
        records,
        {record.offset: row.tombstones_ms.get(record.offset, now_ms) for record in records if record.value is None},
    )


def _slices(storage: Storage, topic: Topic, partition: int, first: int, end: int) -> Iterator[list[_StoredRow]]:
    """Rows with first <= last offset < end in slices, each read afresh: appends and other rounds come in between."""
    while first < end and not topic.retired:
        rows: list[_StoredRow] = []
        size_bytes = 0
        number = topic.stored.number
        for key, value in storage.scan(row_key(number, partition, first), row_key(number, partition, end)):
            if rows and (size_bytes + len(value) > _SLICE_BYTES_MAX or len(rows) == _SLICE_ROWS_MAX):
                break
            rows.append(_StoredRow(key, last_offset_of(key), decode_row(value), len(value)))
            size_bytes += len(value)
        if not rows:
            return
        yield rows
        first = rows[-1].last_offset + 1


def _write(
    storage: Storage,
    topic: Topic,
    partition: int,
    puts: list[tuple[bytes, bytes]],
    deletes: list[bytes],
    state: PartitionState | None,
) -> None:
    if state is not None:
        puts = [*puts, (partition_key(topic.stored.number, partition), encode(state))]
    storage.write(puts, deletes)
    if state is not None:
        topic.partitions[partition] = state
