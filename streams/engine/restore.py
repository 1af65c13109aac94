"""Restore: bring a store up to the end of its changelogs, or start it anew where it cannot be trusted."""

import logging
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from streams.engine.store import ChangelogMark, Store
from streams.engine.table import AnyTable
from streams.transport.base import Outgoing, Reader, Record, TransactionalProducer

log = logging.getLogger(__name__)

# No row has this key: text keys are UTF-8, and the other codecs begin with a small number.
IDENTITY_KEY = b"\xffidentity"


@dataclass
class RestoreProgress:
    """Records applied so far and how many there are to apply at most; `started_at` is monotonic seconds."""

    applied: int = 0
    total: int = 0
    started_at: float = 0.0


async def restore(
    store: Store, reader: Reader, tables: Mapping[str, AnyTable], delete_retention_s: float, progress: RestoreProgress
) -> list[str]:
    """Apply every changelog (topic name to table) to `store` up to its end, read committed.

    Returns the changelogs that have no identity record yet. A store is wiped first when it is ahead of a changelog,
    when a changelog was recreated, or when it has missed records for longer than half of the tombstones' retention
    (some that it has missed may be gone).
    """
    progress.started_at = time.monotonic()
    bounds = await reader.bounds()
    if problem := await _identity_problem(store, reader, bounds):
        _start_anew(store, problem)
    is_old = store.written_at > 0 and time.time() - store.written_at > delete_retention_s / 2
    ends = {topic: end for topic, (_, end) in bounds.items()}
    for topic in ends:
        reader.seek(topic, store.mark(topic).position)
    progress.total = sum(max(0, end - store.mark(topic).position) for topic, end in ends.items())
    pending = {topic for topic, end in ends.items() if store.mark(topic).position < end}
    while pending:
        for topic, (records, position) in (await reader.fetch()).items():
            if is_old and records:
                _start_anew(store, "it was last written too long ago, deletions may be missing from the changelog")
                return await restore(store, reader, tables, delete_retention_s, progress)
            apply(store, tables[topic], topic, records, position)
            progress.applied += len(records)
            if position >= ends[topic]:
                pending.discard(topic)
    return [topic for topic in ends if not store.mark(topic).identity]


async def identify(topics: Sequence[str], partition: int, producer: TransactionalProducer, store: Store) -> None:
    """Give new changelogs the record by which a store recognises them; `producer` is the partition's, started."""
    identities: dict[tuple[str, int], Sequence[Outgoing]] = {
        (topic, partition): [(IDENTITY_KEY, uuid.uuid4().hex.encode(), ())] for topic in topics
    }
    await producer.begin()
    await producer.send(identities)
    ends = await producer.commit()
    marks = {
        topic: ChangelogMark(end, identities[topic, number][0][1] or b"", end - 1)
        for (topic, number), end in ends.items()
    }
    store.write((), marks)


def apply(store: Store, table: AnyTable, topic: str, records: Sequence[Record], position: int) -> None:
    """Write changelog records and the position behind them to the store in one batch."""
    mark = store.mark(topic)
    identity, identity_offset = mark.identity, mark.identity_offset
    rows: list[Outgoing] = []
    for record in records:
        key = record.key
        if key == IDENTITY_KEY:
            identity, identity_offset = record.value or b"", record.offset
        elif key is not None:
            rows.append((key, record.value, ()))
    store.write([(table.prefix, rows)], {topic: ChangelogMark(position, identity, identity_offset)})


def _start_anew(store: Store, reason: str) -> None:
    log.warning("store %s is restored from the beginning: %s", store.path, reason)
    store.wipe()


async def _identity_problem(store: Store, reader: Reader, bounds: Mapping[str, tuple[int, int]]) -> str:
    """Why the store does not belong to these changelogs, empty if it does.

    The identity record is read back at the offset where the store saw it. It can only have moved if the changelog is a
    copy, which is another changelog.
    """
    to_check: dict[str, ChangelogMark] = {}
    for topic, (_, end) in bounds.items():
        mark = store.mark(topic)
        if mark.position > end:
            return f"it is at {mark.position} of {topic}, which ends at {end}"
        if mark.identity:
            to_check[topic] = mark
            reader.seek(topic, mark.identity_offset)
    while to_check:
        for topic, (records, position) in (await reader.fetch()).items():
            expected = to_check.get(topic)
            if expected is None or (not records and position <= expected.identity_offset):
                continue
            found = records[0] if records else None
            if found is None or found.offset != expected.identity_offset or found.value != expected.identity:
                return f"{topic} was created anew"
            del to_check[topic]
    return ""
