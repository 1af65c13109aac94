"""Repair: a partition's changelogs are made whole again, of its store, or by a person's word that they are.

It happens when a partition starts: its producer has fenced every other writer, and nothing else reads or writes the
store. From the store every row is written again, in transactions of bounded size, and a deletion for each row that the
changelog has and the store has not. The last transaction holds the new identities, which say from which offset on a
changelog has every row; before it nothing counts as repaired. A store whose repair was interrupted is refused until it
is asked for again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Final, NamedTuple

from msgspec.structs import replace

from engine.declare.table import AnyTable
from engine.log.ports import Outgoing, Reader, TransactionalProducer, TransportError
from engine.positions.positions import POSITIONS
from engine.store.changelogs import (
    IDENTITY_KEY,
    UNDER_REPAIR,
    Changelog,
    Standing,
    look,
    new_identity,
)
from engine.store.repair_rows import FROM_EVENTS, FROM_STORE, REPAIRS, Repair, RepairRow, repair_key
from engine.store.restore import RestoreProgress, follow
from engine.store.store import ChangelogMark, Store

ROWS_PER_TRANSACTION: Final = 1000
BYTES_PER_TRANSACTION: Final = 1 << 20
VISIBLE_TIMEOUT_S: Final = 20.0
VISIBLE_PAUSE_S: Final = 0.02


class CannotRepair(Exception):
    """What was asked for would lose rows, or is not possible; the message says what to do instead."""


class Place(NamedTuple):
    """The partition that is repaired, with what it is made of; `ids` are the changelogs' topic ids."""

    number: int
    store: Store
    reader: Reader
    producer: TransactionalProducer
    tables: Mapping[str, AnyTable]  # by changelog
    ids: Mapping[str, str]
    derived: Collection[str]  # names of tables that a rebuild makes anew


async def repair(place: Place, asked: Repair) -> None:
    """Do what was asked for; the store is restored as ever after that.

    Raises CannotRepair where it would lose rows or is not possible; nothing is done then.
    """
    changelogs = await look(place.store, place.reader, place.ids)
    if asked.aside:  # the life before ended when the store had been put aside
        await _accept(place, asked, [c for c in changelogs if c.topic in asked.changelogs])
        return
    faulty = [c for c in changelogs if c.standing is not Standing.FOLLOWS or not c.is_whole]
    if not faulty:
        if asked.state == "running":
            return  # it was done before this life of the partition
        raise CannotRepair(f"there is nothing to repair in partition {place.number}")
    asked.state, asked.rows, asked.removed = "running", 0, 0
    asked.changelogs = tuple(changelog.topic for changelog in faulty)
    asked.tables = tuple(place.tables[changelog.topic].name for changelog in faulty)
    if asked.source == FROM_STORE:
        await _from_store(place, asked, changelogs, faulty)
    else:
        await _from_changelog(place, asked, changelogs, faulty)


async def _from_store(
    place: Place, asked: Repair, changelogs: Sequence[Changelog], faulty: Sequence[Changelog]
) -> None:
    if missing := _topics(faulty, Standing.EMPTY):
        raise CannotRepair(f"this worker has no store with rows of {missing}: ask the worker that has it")
    if (lacking := _topics(faulty, Standing.BEHIND)) and not asked.accept_loss:
        raise CannotRepair(
            f"records of {lacking} were removed before this store had them: ask the worker that has a newer store of "
            f"partition {place.number}, or put a backup of its data folder in place. --accept-loss goes on without them"
        )
    followed = [c for c in changelogs if c.standing in (Standing.FOLLOWS, Standing.BEHIND)]
    await follow(place.store, place.reader, followed, place.tables, RestoreProgress(), is_trusted=True)
    place.store.write((), {c.topic: replace(place.store.mark(c.topic), topic_id=UNDER_REPAIR) for c in faulty})
    for changelog in faulty:
        await _write_rows(place, asked, changelog)
    ends = await _seal(place, asked, faulty, {changelog.topic: changelog.end for changelog in faulty})
    await _until_visible(place.reader, ends)


async def _from_changelog(
    place: Place, asked: Repair, changelogs: Sequence[Changelog], faulty: Sequence[Changelog]
) -> None:
    if only_here := [c.topic for c in faulty if c.standing in (Standing.FOLLOWS, Standing.OLD)]:
        raise CannotRepair(
            f"the store of partition {place.number} is the only copy of rows of {', '.join(only_here)}: "
            "repair it from the store"
        )
    if asked.source == FROM_EVENTS and (others := sorted(set(asked.tables) - set(place.derived))):
        raise CannotRepair(
            f"the rows of {', '.join(others)} are not made of events alone (decisions rest on them, or they say what "
            "was done already), so they cannot be made anew from events: bring back a store that has them"
        )
    if any(place.tables[c.topic] is POSITIONS and c.standing is not Standing.AHEAD for c in faulty):
        raise CannotRepair(
            "without the agents' positions everything would be processed again: bring back a store that has them, or a "
            "backup"
        )
    if any(changelog.mark != ChangelogMark() for changelog in changelogs):
        asked.aside = str(place.store.put_aside())
    await _accept(place, asked, faulty)


async def _accept(place: Place, asked: Repair, changelogs: Sequence[Changelog]) -> None:
    """Say of changelogs that they have every row that there is; the store, an empty one, is restored from them."""
    complete_from = {changelog.topic: changelog.start for changelog in changelogs}
    ends = await _seal(place, asked, changelogs, complete_from, is_stored=False)
    await _until_visible(place.reader, ends)


def _topics(changelogs: Iterable[Changelog], standing: Standing) -> str:
    return ", ".join(changelog.topic for changelog in changelogs if changelog.standing is standing)


async def _write_rows(place: Place, asked: Repair, changelog: Changelog) -> None:
    """Write every row of a table to its changelog, and a deletion for each that only the changelog has."""
    prefix = place.tables[changelog.topic].prefix
    async for keys in _keys_of(place.reader, changelog):
        gone = [(key, None, ()) for key in keys if place.store.get(prefix + key) is None]
        for part in _parts(iter(gone)):
            await _send(place, changelog.topic, part)
        asked.removed += len(gone)
    rows: Iterator[Outgoing] = ((key[len(prefix) :], value, ()) for key, value in place.store.scan(prefix))
    for part in _parts(rows):
        await _send(place, changelog.topic, part)
        asked.rows += len(part)
        await asyncio.sleep(0)


async def _keys_of(reader: Reader, changelog: Changelog) -> AsyncIterator[Collection[bytes]]:
    """Keys for which a changelog has rows, fetch by fetch."""
    for topic, (_, end) in (await reader.bounds()).items():
        reader.seek(topic, changelog.start if topic == changelog.topic else end)
    position = changelog.start
    while position < changelog.end:
        fetched = (await reader.fetch()).get(changelog.topic)
        if fetched is not None:
            records, position = fetched
            yield {r.key for r in records if r.key is not None and r.key != IDENTITY_KEY and r.value is not None}


def _parts(rows: Iterator[Outgoing]) -> Iterator[list[Outgoing]]:
    """Rows in parts that fit into a transaction."""
    part: list[Outgoing] = []
    size_bytes = 0
    for row in rows:
        part.append(row)
        size_bytes += len(row[0] or b"") + len(row[1] or b"")
        if len(part) == ROWS_PER_TRANSACTION or size_bytes >= BYTES_PER_TRANSACTION:
            yield part
            part, size_bytes = [], 0
    if part:
        yield part


async def _send(place: Place, topic: str, rows: Sequence[Outgoing]) -> None:
    await place.producer.begin()
    await place.producer.send({(topic, place.number): rows})
    await place.producer.commit()


async def _seal(
    place: Place,
    asked: Repair,
    faulty: Sequence[Changelog],
    complete_from: Mapping[str, int],
    is_stored: bool = True,
) -> Mapping[str, int]:
    """Say of changelogs from which offset on they have every row, and write down who has asked for it.

    Returns where the changelogs end. Unless the store is one that will be restored, it has it all at once.
    """
    now_ms = int(time.time() * 1000)
    ended = {changelog.topic: changelog.end for changelog in faulty}
    row = RepairRow(now_ms, asked.source, asked.by, asked.reason, ended, asked.rows, asked.removed, asked.accept_loss)
    noted: Outgoing = (REPAIRS.key.encode(repair_key(now_ms)), REPAIRS.encode_row(row), ())
    identities = {topic: new_identity(offset) for topic, offset in complete_from.items()}
    (repairs_topic,) = (topic for topic, table in place.tables.items() if table is REPAIRS)
    batches: dict[tuple[str, int], list[Outgoing]] = {(repairs_topic, place.number): [noted]}
    for topic, identity in identities.items():
        batches.setdefault((topic, place.number), []).append((IDENTITY_KEY, identity, ()))
    await place.producer.begin()
    await place.producer.send(batches)
    ends = {topic: end for (topic, _), end in (await place.producer.commit()).items()}
    if is_stored:
        marks = {repairs_topic: replace(place.store.mark(repairs_topic), position=ends[repairs_topic])}
        marks |= {topic: ChangelogMark(ends[topic], made, ends[topic] - 1) for topic, made in identities.items()}
        told = {"markers": place.producer.markers}
        place.store.write(
            [(REPAIRS.prefix, [noted])],
            {topic: replace(mark, topic_id=place.ids.get(topic, ""), **told) for topic, mark in marks.items()},
        )
    return ends


async def _until_visible(reader: Reader, ends: Mapping[str, int]) -> None:
    """Wait until readers of committed records see what was written: a commit is answered before its markers are."""
    deadline = time.monotonic() + VISIBLE_TIMEOUT_S
    while True:
        bounds = await reader.bounds()
        if all(bounds[topic][1] >= end for topic, end in ends.items()):
            return
        if time.monotonic() > deadline:
            raise TransportError("the log does not show what a repair has committed")
        await asyncio.sleep(VISIBLE_PAUSE_S)
