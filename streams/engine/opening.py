"""Opening: a partition's store is brought up to its changelogs, and what is the matter with them is told."""

from __future__ import annotations

from collections.abc import Mapping

from streams.engine.changelogs import ChangelogRefused, only_copy_texts
from streams.engine.context import EngineContext
from streams.engine.faults import Fault, FaultKey
from streams.engine.restore import Restored, RestoreProgress, identify, restore
from streams.engine.store import Store
from streams.engine.store_note import note_marks
from streams.engine.table import AnyTable
from streams.transport.base import TransactionalProducer

FAULT_KIND = "changelog"


def changelog_fault(number: int) -> FaultKey:
    """The key of what is the matter with the changelogs of a partition."""
    return FAULT_KIND, number


def changelogs_of(context: EngineContext) -> Mapping[str, AnyTable]:
    """The tables by their changelogs."""
    return {table.changelog_topic(context.settings.app_id): table for table in context.tables.values()}


async def restore_store(
    store: Store, number: int, context: EngineContext, producer: TransactionalProducer, progress: RestoreProgress
) -> None:
    """Restore the store of partition `number` from its changelogs; `producer` is the partition's, started.

    Reports as a fault what keeps it from being restored (and raises ChangelogRefused), or would keep another worker.
    """
    tables = changelogs_of(context)
    ids = await context.broker.topic_ids(list(tables))
    try:
        restored = await _restore(store, number, context, tables, ids, progress)
    except ChangelogRefused as refused:
        context.faults.report(
            changelog_fault(number), Fault(FAULT_KIND, refused.detail, refused.advice, partition=number)
        )
        raise
    if restored.nameless:
        await identify(restored.nameless, number, producer, store, ids)
    _report_only_copy(number, context, restored)
    note_marks(store)
    store.write((), {})  # a disk that has no room for this has none for a commit: better known before any record


async def _restore(
    store: Store,
    number: int,
    context: EngineContext,
    tables: Mapping[str, AnyTable],
    ids: Mapping[str, str],
    progress: RestoreProgress,
) -> Restored:
    reader = context.broker.reader(number, list(tables))
    try:
        await reader.start()
        return await restore(
            store,
            reader,
            number,
            tables,
            context.settings.delete_retention,
            progress,
            ids,
            context.broker.lost_end_at,
        )
    finally:
        await reader.close()


def _report_only_copy(number: int, context: EngineContext, restored: Restored) -> None:
    if not restored.shortened:
        context.faults.clear(changelog_fault(number))
        return
    detail, advice = only_copy_texts(number, restored.shortened)
    context.faults.report(changelog_fault(number), Fault(FAULT_KIND, detail, advice, partition=number))
