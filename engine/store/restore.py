"""Restore: bring a store up to the end of its changelogs, or start it anew where they have more; see changelogs.py."""

import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from msgspec.structs import replace

from engine.declare.table import AnyTable
from engine.log.ports import Outgoing, Reader, Record, TransactionalProducer, TransportError
from engine.store.changelogs import (
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
from engine.store.repair_rows import REPAIRS
from engine.store.store import ChangelogMark, Store

log = logging.getLogger(__name__)


@dataclass
class RestoreProgress:
    """Records applied so far and how many there are to apply at most; `started_at` is monotonic seconds."""

    applied: int = 0
    total: int = 0
    started_at: float = 0.0


class Distrusted(Exception):
    """A store has what was never so, or lacks what cannot be read any more; `standing` says which of it."""

    def __init__(self, reason: str, standing: Standing = Standing.OLD) -> None:
        super().__init__(reason)
        self.standing = standing


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
    is_old = store.written_at > 0 and time.time() - store.written_at > delete_retention_s / 2
    try:
        await follow(store, reader, changelogs, tables, progress, is_old)
        _check_that_repairs_were_seen(store, changelogs)
    except Distrusted as found:
        await _start_anew(store, partition, reader, changelogs, str(found), found.standing)
        return await restore(store, reader, partition, tables, delete_retention_s, progress, ids)
    return _restored(store, changelogs)


async def follow(
    store: Store,
    reader: Reader,
    changelogs: Sequence[Changelog],
    tables: Mapping[str, AnyTable],
    progress: RestoreProgress,
    is_old: bool = False,
    is_trusted: bool = False,
) -> None:
    """Apply what these changelogs have more than the store.

    Raises Distrusted when it `is_old` and has missed any, or when a changelog casts doubt on it and it is not
    `is_trusted` all the same.
    """
    begins = {changelog.topic: max(changelog.mark.position, changelog.start) for changelog in changelogs}
    ends = {changelog.topic: changelog.end for changelog in changelogs}
    known = {changelog.topic: changelog.mark.identity for changelog in changelogs}
    for topic, (_, end) in (await reader.bounds()).items():
        reader.seek(topic, begins.get(topic, end))
    progress.total = sum(max(0, end - begins[topic]) for topic, end in ends.items())
    pending = {topic for topic, end in ends.items() if begins[topic] < end}
    while pending:
        for topic, (records, position) in (await reader.fetch()).items():
            if topic not in pending:
                continue
            if is_old and records:
                raise Distrusted("it was last written too long ago, deletions may be missing from the changelog")
            if not is_trusted and casts_doubt(records, known[topic]):
                raise Distrusted("it may have rows of a transaction that was aborted after all", Standing.DOUBTED)
            apply(store, tables[topic], topic, records, position)
            progress.applied += len(records)
            if position >= ends[topic]:
                pending.discard(topic)
    await _check_that_nothing_was_removed(reader, begins, ends)


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


def _check_that_repairs_were_seen(store: Store, changelogs: Iterable[Changelog]) -> None:
    """Raise Distrusted when the store had passed the place of a repair without having read it.

    A changelog that ended before the stores (an older copy of the log) is repaired by one worker and grows on; a store
    of another one that had been further seems to follow it later on.
    """
    ends: dict[str, int] = {}
    for _, row in store.scan(REPAIRS.prefix):
        ends.update(REPAIRS.decode_row(row).ends)
    for changelog in changelogs:
        end = ends.get(changelog.topic, -1)
        if changelog.mark.position > end > changelog.mark.identity_offset:
            raise Distrusted(f"{changelog.topic} was repaired at an offset that the store had passed before")


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
        if topic in begins and begins[topic] < min(start, ends[topic]):
            raise TransportError(f"{topic} lost its records before offset {start} while they were read")
