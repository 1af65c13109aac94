"""Rebuilds over all partitions, wherever they are: what each partition says of its own, and all of it together."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Final, Literal, TypedDict

import msgspec
from aiohttp import web

from engine.declare.agent import Projection
from engine.declare.partition import Query
from engine.declare.service import Service
from engine.partition.engine import Engine
from engine.partition.task import PartitionTask
from engine.rebuilds.loop import Progress, RebuildUnderWay
from engine.rebuilds.rows import CANCELLED, DONE, FAILED, RUNNING, SAMPLES_MAX, Difference, Rebuild, RebuildState
from engine.web.answers import ENGINE, Problem
from engine.web.routes.queries import ask, ask_all

ASK_TIMEOUT_S: Final = 10.0

service = Service("rebuild-views")


class PartOfRebuild(msgspec.Struct, frozen=True):
    """One partition's part, as workers tell each other; no `rebuild` where there never was one."""

    partition: int
    rebuild: Rebuild | None = None
    done: int = 0
    total: int = 0
    per_second: float = 0.0
    phase: str = ""

    @property
    def seconds_left(self) -> float | None:
        """How long it will take at this speed, None while that is not known."""
        if self.done >= self.total:
            return 0.0
        return (self.total - self.done) / self.per_second if self.per_second else None


def part_of(task: PartitionTask, projection: Projection) -> PartOfRebuild:
    """What a partition says of the last rebuild of a projection."""
    progress = task.rebuilds.progress(projection)
    return PartOfRebuild(task.number) if progress is None else _part(task.number, progress)


def _part(number: int, progress: Progress) -> PartOfRebuild:
    return PartOfRebuild(number, *progress)


class ProjectionAsked(msgspec.Struct, frozen=True):
    """A projection, by the agent that makes it."""

    projection: str


class BeginAsked(ProjectionAsked, frozen=True):
    """A rebuild to begin; with `check` it replaces nothing."""

    id: str
    check: bool


@service.query("rebuild")
async def look_at_rebuild(engine: Engine, task: PartitionTask, asked: ProjectionAsked) -> PartOfRebuild:
    """A partition's part of the last rebuild of a projection."""
    return part_of(task, _projection(engine, asked))


@service.query("begin-rebuild", changes=True)
async def begin_rebuild(engine: Engine, task: PartitionTask, asked: BeginAsked) -> PartOfRebuild:
    """Begin a rebuild in a partition; another one that is under way goes on, and the answer tells which it is."""
    projection = _projection(engine, asked)
    with contextlib.suppress(RebuildUnderWay):
        await task.rebuilds.begin(projection, asked.id, asked.check, int(time.time() * 1000))
    return part_of(task, projection)


@service.query("stop-rebuild", changes=True)
async def stop_rebuild(engine: Engine, task: PartitionTask, asked: ProjectionAsked) -> PartOfRebuild:
    """Give a rebuild up in a partition, if it is not over."""
    projection = _projection(engine, asked)
    await task.rebuilds.stop(projection, int(time.time() * 1000))
    return part_of(task, projection)


async def in_every_partition(
    request: web.Request, query: Query[ProjectionAsked, PartOfRebuild], projection: Projection
) -> list[PartOfRebuild]:
    """What each partition says of a projection's rebuild; raises PartitionNotHere when one cannot be reached."""
    return await ask_all(request, query, ProjectionAsked(projection.name), ASK_TIMEOUT_S)


async def begin_everywhere(request: web.Request, projection: Projection, id: str, check: bool) -> list[PartOfRebuild]:
    """What each partition says after a rebuild was begun, in partition 0 first: of two at once, one begins nowhere."""
    asked = BeginAsked(projection.name, id, check)
    first = await ask(request, begin_rebuild, 0, asked, ASK_TIMEOUT_S)
    if first.rebuild is None or first.rebuild.id != id:
        return [first]
    others = range(1, request.app[ENGINE].settings.partitions)
    begun = (ask(request, begin_rebuild, number, asked, ASK_TIMEOUT_S) for number in others)
    return [first, *await asyncio.gather(*begun)]


def _projection(engine: Engine, asked: ProjectionAsked) -> Projection:
    projection = engine.projections.get(asked.projection)
    if projection is None:
        raise Problem(404, f"there is no projection {asked.projection}")
    return projection


def newest(parts: Sequence[PartOfRebuild]) -> Rebuild | None:
    """The rebuild that began last, None when there never was one."""
    return max(
        (part.rebuild for part in parts if part.rebuild is not None), key=lambda r: (r.started_ms, r.id), default=None
    )


def state_of(parts: Sequence[PartOfRebuild], id: str) -> RebuildState | Literal["incomplete"]:
    """The state of a rebuild as a whole: `incomplete` when it was not begun everywhere."""
    states = {part.rebuild.outcome if part.rebuild and part.rebuild.id == id else "incomplete" for part in parts}
    for state in ("incomplete", RUNNING, FAILED, CANCELLED):
        if state in states:
            return state
    return DONE


class RecordsView(TypedDict):
    """What became of the records that a rebuild has read."""

    applied: int
    waiting: int
    discarded: int
    unreadable: int


class DifferencesView(TypedDict):
    """The rows that differ, by what is wrong with the running ones."""

    added: int
    changed: int
    removed: int
    rows: int
    are_more: bool
    samples: list[Difference]


class PartitionView(TypedDict):
    """How far one partition is."""

    partition: int
    state: str
    phase: str | None
    done: int
    total: int


class RebuildView(TypedDict):
    """A rebuild as people see it."""

    table: str
    tables: list[str]
    projection: str
    topic: str
    id: str
    check: bool
    state: str
    records_done: int
    records_total: int
    records_per_second: float
    seconds_left: float | None
    records: RecordsView
    suppressed: int
    restarts: int
    differences: DifferencesView
    started_at: str
    ended_at: str | None
    errors: list[str]
    partitions: list[PartitionView]


def view_of(projection: Projection, table: str, parts: Sequence[PartOfRebuild]) -> RebuildView | None:
    """The newest rebuild as people see it, None when there never was one."""
    last = newest(parts)
    if last is None:
        return None
    own = [part for part in parts if part.rebuild is not None and part.rebuild.id == last.id]
    rebuilds = [part.rebuild for part in own if part.rebuild is not None]
    left = [part.seconds_left for part in own if part.rebuild is not None and part.rebuild.outcome == RUNNING]
    state = state_of(parts, last.id)
    ends = [rebuild.ended_ms for rebuild in rebuilds]
    return {
        "table": table,
        "tables": [made.name for made in projection.tables],
        "projection": projection.name,
        "topic": projection.topic.name,
        "id": last.id,
        "check": last.check,
        "state": state,
        "records_done": sum(part.done for part in own),
        "records_total": sum(part.total for part in own),
        "records_per_second": round(sum(part.per_second for part in own), 1),
        "seconds_left": None if None in left else max((round(s, 1) for s in left if s is not None), default=0.0),
        "records": {
            "applied": sum(rebuild.applied for rebuild in rebuilds),
            "waiting": sum(rebuild.waiting for rebuild in rebuilds),
            "discarded": sum(rebuild.discarded for rebuild in rebuilds),
            "unreadable": sum(rebuild.unreadable for rebuild in rebuilds),
        },
        "suppressed": sum(rebuild.suppressed for rebuild in rebuilds),
        "restarts": sum(rebuild.restarts for rebuild in rebuilds),
        "differences": _differences(rebuilds),
        "started_at": _time(min(rebuild.started_ms for rebuild in rebuilds)),
        "ended_at": None if None in ends or state == "incomplete" else _time(max(ms for ms in ends if ms is not None)),
        "errors": [rebuild.error for rebuild in rebuilds if rebuild.error is not None],
        "partitions": [_partition(part, last.id) for part in parts],
    }


def _differences(rebuilds: Sequence[Rebuild]) -> DifferencesView:
    samples: list[Difference] = [sample for rebuild in rebuilds for sample in rebuild.samples]
    return {
        "added": sum(rebuild.added for rebuild in rebuilds),
        "changed": sum(rebuild.changed for rebuild in rebuilds),
        "removed": sum(rebuild.removed for rebuild in rebuilds),
        "rows": sum(rebuild.rows for rebuild in rebuilds),
        "are_more": any(rebuild.are_more for rebuild in rebuilds),
        "samples": samples[: 2 * SAMPLES_MAX],
    }


def _partition(part: PartOfRebuild, id: str) -> PartitionView:
    if part.rebuild is None or part.rebuild.id != id:
        return {"partition": part.partition, "state": "incomplete", "phase": None, "done": 0, "total": 0}
    state, phase = part.rebuild.outcome, part.phase if part.rebuild.is_active else None
    return {"partition": part.partition, "state": state, "phase": phase, "done": part.done, "total": part.total}


def _time(epoch_ms: int) -> str:
    return datetime.fromtimestamp(epoch_ms / 1000, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
