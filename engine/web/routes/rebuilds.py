"""Routes that rebuild projections, and show how far a rebuild is and what it has found."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

import msgspec
from aiohttp import web

from engine.declare.agent import Projection
from engine.declare.operation import Operation
from engine.partition.engine import Engine
from engine.partition.task import PartitionTask
from engine.rebuilds.rows import DONE, RUNNING
from engine.web.answers import ENGINE, Problem, invalid, json_response
from engine.web.rebuild_progress import (
    PartOfRebuild,
    RebuildView,
    begin_everywhere,
    in_every_partition,
    look_at_rebuild,
    newest,
    service,
    state_of,
    stop_rebuild,
    view_of,
)


class RebuildBody(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a rebuild takes: whether it only looks for differences, and leaves the rows as they are."""

    check: bool = False


@service.route("POST", "/tables/{name}/rebuild", Operation({202: RebuildView}, body=RebuildBody, problems=(404, 409)))
async def rebuild_table(request: web.Request) -> web.StreamResponse:
    """Make a projection anew from its topic, beside the running one, and then replace the rows that differ.

    202 with the same as GET. `{"check": true}` shows the differences and replaces nothing. Tables that the same agent
    makes are rebuilt together (`tables`). One that could not be begun in all partitions is completed by asking again.
    Problems: 404; 409 with `reason` `not_a_projection` for tables that decisions rest on, or `under_way`; 422; 503.
    """
    projection, body = _projection(request), _body(await request.read())
    id = _to_begin(await in_every_partition(request, look_at_rebuild, projection), body)
    parts = await begin_everywhere(request, projection, id, body.check)
    if any(part.rebuild is None or part.rebuild.id != id for part in parts):
        raise _under_way(parts)
    return _answer(request, projection, parts, 202)


@service.route("GET", "/tables/{name}/rebuild", Operation({200: RebuildView}, problems=(404, 409)))
async def show_rebuild(request: web.Request) -> web.StreamResponse:
    """The last rebuild of a projection: its state, how far it is, and the rows that differ.

    `state` is `running`, `done`, `failed` (with `errors`), `cancelled`, or `incomplete` when it was not begun in all
    partitions. `records_done` and `records_total` count offsets. `records` says what became of records: `waiting` ones
    are missing in the running projection too, `discarded` and `unreadable` ones are left out. `suppressed` is what
    handlers wanted to send. `differences` has `added`, `changed` and `removed` rows and `samples` of them. 404 when the
    table was never rebuilt.
    """
    projection = _projection(request)
    return _answer(request, projection, await in_every_partition(request, look_at_rebuild, projection), 200)


@service.route("DELETE", "/tables/{name}/rebuild", Operation({200: RebuildView}, problems=(404, 409)))
async def cancel_rebuild(request: web.Request) -> web.StreamResponse:
    """Give a rebuild up where it is not over; the same as GET. What partitions have replaced stays."""
    projection = _projection(request)
    return _answer(request, projection, await in_every_partition(request, stop_rebuild, projection), 200)


def _to_begin(parts: list[PartOfRebuild], body: RebuildBody) -> str:
    """The id of the rebuild to begin: a new one, or that of one that was not begun everywhere; raises a 409."""
    last = newest(parts)
    if last is None or not any(part.rebuild is not None and part.rebuild.outcome == RUNNING for part in parts):
        return str(uuid.uuid4())
    if state_of(parts, last.id) == "incomplete" and last.check == body.check:
        return last.id
    raise _under_way(parts)


def _under_way(parts: list[PartOfRebuild]) -> Problem:
    last = newest(parts)
    id = last.id if last is not None else None
    return Problem(
        409,
        "this table is being rebuilt already: follow it with GET, or give it up with DELETE",
        reason="under_way",
        id=id,
    )


def _projection(request: web.Request) -> Projection:
    name, engine = request.match_info["name"], request.app[ENGINE]
    if name not in engine.tables:
        raise Problem(404, f"there is no table {name}")
    projection = engine.projection_of(name)
    if projection is None:
        raise _no_projection(name, engine)
    return projection


def _no_projection(name: str, engine: Engine) -> Problem:
    possible = sorted(table.name for made in engine.projections.values() for table in made.tables)
    return Problem(
        409,
        f"table {name} cannot be rebuilt: its rows are not made of events alone. Decisions rest on them, or they are "
        "written together with the events, so making them anew would decide anew. They are restored from the table's "
        f"changelog. Tables that can be rebuilt: {', '.join(possible)}",
        reason="not_a_projection",
        tables=possible,
    )


def _body(raw: bytes) -> RebuildBody:
    try:
        return msgspec.json.decode(raw or b"{}", type=RebuildBody)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise invalid("body", str(error)) from error


def _answer(
    request: web.Request, projection: Projection, parts: list[PartOfRebuild], status: int
) -> web.StreamResponse:
    name = request.match_info["name"]
    view = view_of(projection, name, parts)
    if view is None:
        raise Problem(404, f"table {name} was never rebuilt")
    return json_response(view, status)


@service.gauge(
    "rebuild_progress", "how far the last rebuild of a projection is, 1 at its end", label="projection", combine=min
)
def rebuild_progress(task: PartitionTask) -> Mapping[str, float]:
    """How far a partition's rebuilds are."""
    return {
        agent: 1.0 if progress.rebuild.outcome == DONE else progress.done / max(1, progress.total)
        for agent, progress in task.rebuilds.all_progress()
    }
