"""Opening: a partition's store is brought up to its changelogs, and what is the matter with them is told."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from engine.declare.table import AnyTable
from engine.health.faults import Fault, FaultKey
from engine.log.ports import TransactionalProducer
from engine.observe.about import about
from engine.store.changelogs import Changelog, ChangelogRefused, only_copy_texts
from engine.store.note import note_marks
from engine.store.repair import CannotRepair, Place, repair
from engine.store.repair_rows import Repair, Repairs
from engine.store.restore import RestoreProgress, identify, restore
from engine.store.store import Store
from engine.work.context import EngineContext

log = logging.getLogger(__name__)

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

    Repairs them before, when somebody has asked for it. Reports as a fault what keeps it from being restored (and
    raises ChangelogRefused), or would keep another worker.
    """
    tables = changelogs_of(context)
    ids = await context.broker.topic_ids(list(tables))
    try:
        reader = context.broker.reader(number, list(tables))
        try:
            await reader.start()
            asked = await _repair(
                Place(number, store, reader, producer, tables, ids, _derived(context)), context.repairs
            )
            kept_s, lost_end_at = context.settings.delete_retention, context.broker.lost_end_at
            restored = await restore(store, reader, number, tables, kept_s, progress, ids, lost_end_at)
        finally:
            await reader.close()
    except ChangelogRefused as refused:
        context.faults.report(
            changelog_fault(number),
            Fault(FAULT_KIND, refused.detail, refused.advice(context.settings.application), partition=number),
        )
        raise
    if asked is not None:
        asked.state = "done"
        log.warning("%s", _told(asked), extra=about(partition=number))
    if restored.nameless:
        await identify(restored.nameless, number, producer, store, ids)
    _report_only_copy(number, context, restored.shortened)
    note_marks(store)
    store.write((), {})  # a disk that has no room for this has none for a commit: better known before any record


async def _repair(place: Place, repairs: Repairs) -> Repair | None:
    """Do the repair that is due, and return it; one that is refused is answered, and changes nothing."""
    asked = repairs.due(place.number)
    if asked is None:
        return None
    try:
        await repair(place, asked)
        return asked
    except CannotRepair as error:
        asked.state, asked.detail = "refused", str(error)
        log.warning(
            "the repair of partition %d is refused: %s", place.number, error, extra=about(partition=place.number)
        )
        return None


def _derived(context: EngineContext) -> set[str]:
    """Names of tables that a rebuild makes anew from their topics."""
    return {table.name for projection in context.projections.values() for table in projection.tables}


def _told(asked: Repair) -> str:
    """A repair that was made, for the log."""
    why = f": {asked.reason}" if asked.reason else ""
    return (
        f"partition {asked.partition} was repaired from the {asked.source}, for {asked.by}{why} "
        f"({', '.join(asked.changelogs)}; {asked.rows} rows written, {asked.removed} removed)"
    )


async def watch_changelogs(store: Store, number: int, context: EngineContext) -> None:
    """Report when the changelogs of a running partition could not restore its store any more; raises TransportError.

    Its store is the only copy then, and losing it before somebody knows would lose rows.
    """
    topics = list(changelogs_of(context))
    bounds = await context.broker.bounds([(topic, number) for topic in topics])
    changelogs = [Changelog(topic, "", *bounds[topic, number], store.mark(topic)) for topic in topics]
    _report_only_copy(number, context, [changelog for changelog in changelogs if not changelog.is_whole])


def _report_only_copy(number: int, context: EngineContext, shortened: Sequence[Changelog]) -> None:
    if not shortened:
        context.faults.clear(changelog_fault(number))
        return
    detail, advice = only_copy_texts(number, shortened, context.settings.application)
    context.faults.report(changelog_fault(number), Fault(FAULT_KIND, detail, advice, partition=number))
