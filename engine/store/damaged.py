"""Damaged stores: a store is a cache, so one that is damaged is moved aside and built anew from its changelogs.

Not where its changelogs have less than it had, as far as the note beside it tells: then its partition waits for a
person, and the folder stays as it is.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path

from engine.declare.table import AnyTable
from engine.observe.about import about
from engine.store.changelogs import Changelog, ChangelogRefused, Standing, look
from engine.store.faults import built_anew, disk_fault_key, not_built_anew
from engine.store.note import StoreNote, note_damage, read_note
from engine.store.restore import refuse_unless_repaired
from engine.store.store import Store, StoreDamaged, StoreError
from engine.work.context import EngineContext

log = logging.getLogger(__name__)

KEPT_S = 7 * 86_400.0
KEPT_BYTES_MAX = 2 << 30


async def intact_store(number: int, tables: Mapping[str, AnyTable], context: EngineContext) -> Store:
    """Open the store of partition `number`, an empty one where it is damaged; `tables` are by changelog.

    Raises ChangelogRefused where it is damaged and its changelogs have less, StoreError when it cannot be opened.
    """
    path = context.store_path(number)
    await asyncio.to_thread(remove_old, path.parent)
    note = read_note(path)
    damage = note.damage
    if not damage:
        try:
            return Store(path, context.settings.application)
        except StoreDamaged as error:
            damage = str(error)
            context.metrics.storage_errors += 1
            note_damage(path, note, damage)
    try:
        await _refuse_unless_whole(number, tables, context, note)
    except ChangelogRefused as refused:
        context.faults.report(disk_fault_key(number), not_built_anew(number, path, damage, refused.detail))
        raise
    aside = move_aside(path)
    context.metrics.stores_rebuilt += 1
    context.faults.report(disk_fault_key(number), built_anew(number, damage))
    said = about(partition=number)
    log.warning("%s: it is moved to %s and built anew from its changelog", damage, aside, extra=said)
    return Store(path, context.settings.application)


async def _refuse_unless_whole(
    number: int, tables: Mapping[str, AnyTable], context: EngineContext, note: StoreNote
) -> None:
    """Raise ChangelogRefused unless the changelogs have every row that the store had."""
    ids = await context.broker.topic_ids(list(tables))
    reader = context.broker.reader(number, list(tables))
    try:
        await reader.start()
        changelogs = await look(note, reader, ids)
        await refuse_unless_repaired(number, reader, list(_doubtful(changelogs, note)))
    finally:
        await reader.close()


def _doubtful(changelogs: list[Changelog], note: StoreNote) -> Iterator[Changelog]:
    if not note.changelogs and not any(changelog.end for changelog in changelogs):
        # A store of an earlier release has no note; but it has been made from something.
        yield from (changelog._replace(standing=Standing.OTHER) for changelog in changelogs)
    for changelog in changelogs:
        if changelog.standing is not Standing.FOLLOWS or not changelog.is_whole:
            yield changelog


def move_aside(path: Path) -> Path:
    """Rename the folder of a damaged store; where it is then. Raises StoreError when that cannot be done."""
    aside = path.with_name(f"{path.name}.damaged-{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}")
    try:
        os.rename(path, aside)
    except OSError as error:
        raise StoreError(f"{path} is damaged and cannot be moved aside ({error.strerror}): check the disk") from error
    return aside


def remove_old(stores: Path) -> None:
    """Remove damaged stores that were moved aside long ago, and the oldest where all of them take too much room."""
    total = 0
    for folder in sorted(stores.glob("*.damaged-*"), key=lambda folder: folder.name.partition("-")[2], reverse=True):
        try:
            total += sum(file.stat().st_size for file in folder.iterdir())
            is_old = time.time() - folder.stat().st_ctime > KEPT_S
        except OSError:
            continue
        if is_old or total > KEPT_BYTES_MAX:
            log.info("damaged store %s is removed", folder)
            shutil.rmtree(folder, ignore_errors=True)
