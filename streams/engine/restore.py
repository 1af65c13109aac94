"""Restore: bring a store up to the end of its changelogs, or start it anew where they have more; see changelogs.py."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from streams.engine.changelogs import (
    IDENTITY_KEY,
    NO_IDS,
    Changelog,
    ChangelogRefused,
    Standing,
    casts_doubt,
    has_everything,
    look,
    new_identity,
    newest_identities,
)
from streams.engine.store import ChangelogMark, Store
from streams.engine.table import AnyTable
from streams.transport.base import Outgoing, Reader, Record, TransactionalProducer, TransportError

log = logging.getLogger(__name__)


@dataclass
class RestoreProgress:
    """Records applied so far and how many there are to apply at most; `started_at` is monotonic seconds."""

    applied: int = 0
    total: int = 0
    started_at: float = 0.0


class Restored(NamedTuple):
    """What a restore has found: changelogs without an identity, and those that could not restore this store again."""

    nameless: Sequence[str]
    shortened: Sequence[Changelog]


async def restore(
    store: Store,
    reader: Reader,
    partition: int,
    tables: Mapping[str, AnyTable],
    delete_retention_s: float,
    progress: RestoreProgress,
    ids: Mapping[str, str] = NO_IDS,
    lost_end_at: float = 0.0,
) -> Restored:
    """Apply every changelog (topic name to table) to `store` up to its end, read committed.

    `ids` are the topics' ids, as far as they are known, and `lost_end_at` is when it was accepted that the log had lost
    its end (see Broker). The store is given up first, and restored from the beginning,
    where changelogs have everything that it has and more. Raises ChangelogRefused where they have less, or where rows
    would be missing without a trace; the store is as it was then.
    """
    progress.started_at = time.monotonic()
    changelogs = await look(store, reader, ids)
    if any(changelog.standing is Standing.AHEAD for changelog in changelogs) and store.written_at < lost_end_at:
        await _start_anew(store, partition, reader, changelogs, "the log has lost its end, and it is ahead of that")
        return await restore(store, reader, partition, tables, delete_retention_s, progress, ids)
    doubtful = [changelog for changelog in changelogs if changelog.standing is not Standing.FOLLOWS]
    if doubtful:
        await refuse_unless_repaired(partition, reader, doubtful)
        if any(changelog.standing is not Standing.EMPTY for changelog in doubtful):
            others = [changelog for changelog in changelogs if changelog not in doubtful]
            await _start_anew(store, partition, reader, others, "a changelog was repaired that it does not follow")
            return await restore(store, reader, partition, tables, delete_retention_s, progress, ids)
    begins = {changelog.topic: max(changelog.mark.position, changelog.start) for changelog in changelogs}
    ends = {changelog.topic: changelog.end for changelog in changelogs}
    identities = {changelog.topic: changelog.mark.identity for changelog in changelogs}
    for topic, begin in begins.items():
        reader.seek(topic, begin)
    progress.total = sum(end - begins[topic] for topic, end in ends.items())
    is_old = store.written_at > 0 and time.time() - store.written_at > delete_retention_s / 2
    pending = {topic for topic, end in ends.items() if begins[topic] < end}
    while pending:
        for topic, (records, position) in (await reader.fetch()).items():
            if is_old and records:
                await _start_anew(store, partition, reader, changelogs, "it was last written too long ago")
                return await restore(store, reader, partition, tables, delete_retention_s, progress, ids)
            if casts_doubt(records, identities[topic]):
                doubt = "it may have rows of a transaction that was aborted after all"
                await _start_anew(store, partition, reader, changelogs, doubt, Standing.DOUBTED)
                return await restore(store, reader, partition, tables, delete_retention_s, progress, ids)
            apply(store, tables[topic], topic, records, position)
            progress.applied += len(records)
            if position >= ends[topic]:
                pending.discard(topic)
    await _check_that_nothing_was_removed(reader, begins, ends)
    return _restored(store, changelogs)


async def identify(
    topics: Sequence[str],
    partition: int,
    producer: TransactionalProducer,
    store: Store,
    ids: Mapping[str, str] = NO_IDS,
) -> None:
    """Give new changelogs the record by which a store recognises them; `producer` is the partition's, started."""
    identities: dict[tuple[str, int], Sequence[Outgoing]] = {
        (topic, partition): [(IDENTITY_KEY, new_identity(), ())] for topic in topics
    }
    await producer.begin()
    await producer.send(identities)
    ends = await producer.commit()
    marks = {
        topic: ChangelogMark(end, identities[topic, number][0][1] or b"", end - 1, ids.get(topic, ""), producer.markers)
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
    store.write([(table.prefix, rows)], {topic: ChangelogMark(position, identity, identity_offset, mark.topic_id)})


def _restored(store: Store, changelogs: Sequence[Changelog]) -> Restored:
    """Note the topics' ids where the store has not got them yet, as one of an earlier release has not."""
    adopted = {
        changelog.topic: replace(mark, topic_id=changelog.id)
        for changelog in changelogs
        if (mark := store.mark(changelog.topic)).position and mark.topic_id != changelog.id
    }
    if adopted:
        store.write((), adopted)
    now = [changelog._replace(mark=store.mark(changelog.topic)) for changelog in changelogs]
    return Restored(
        [changelog.topic for changelog in now if not changelog.mark.identity],
        [changelog for changelog in now if not changelog.is_whole],
    )


async def refuse_unless_repaired(partition: int, reader: Reader, doubtful: Sequence[Changelog]) -> None:
    """Raise ChangelogRefused unless a repair has made sure that each of these changelogs has every row."""
    identities = await newest_identities(reader, doubtful) if doubtful else {}
    refused = [changelog for changelog in doubtful if not _is_repaired(identities.get(changelog.topic, b""), changelog)]
    if refused:
        raise ChangelogRefused(partition, refused)


def _is_repaired(identity: bytes, changelog: Changelog) -> bool:
    return b"@" in identity and identity != changelog.mark.identity and has_everything(identity, changelog.start)


async def _start_anew(
    store: Store,
    partition: int,
    reader: Reader,
    changelogs: Iterable[Changelog],
    reason: str,
    standing: Standing = Standing.OLD,
) -> None:
    """Give the store up for changelogs that have everything; raises ChangelogRefused where one of them has not."""
    unproven = [changelog._replace(standing=standing) for changelog in changelogs if not changelog.is_whole]
    await refuse_unless_repaired(partition, reader, unproven)
    log.warning("store %s is restored from the beginning: %s", store.path, reason)
    store.wipe()


async def _check_that_nothing_was_removed(reader: Reader, begins: Mapping[str, int], ends: Mapping[str, int]) -> None:
    """Raise TransportError when records were removed while they were read: a reader goes on behind them in silence."""
    for topic, (start, _) in (await reader.bounds()).items():
        if begins[topic] < min(start, ends[topic]):
            raise TransportError(f"{topic} lost its records before offset {start} while they were read")
