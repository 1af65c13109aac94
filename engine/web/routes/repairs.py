"""HTTP commands of repairs: make a partition's changelogs whole again, and see how far that is."""

from __future__ import annotations

from typing import Annotated, Final

from aiohttp import web
from pydantic import ConfigDict, Field

from engine.declare.operation import LOCATION, Answer, Operation
from engine.declare.service import Service
from engine.failures.decisions import REASON_CHARACTERS_MAX
from engine.store.opening import changelog_fault
from engine.store.repair_rows import Repair, Source
from engine.web.answers import ENGINE, Problem, json_response
from engine.web.bodies import Body, read_body
from engine.web.routing import ROUTER, number_in_path

service = Service("gateway-repairs")

WHO_CHARACTERS_MAX: Final = 128
PATH: Final = "/partitions/{number}/repair"


class RepairBody(Body):
    """What a repair takes: of what it is made, why, and who asks for it."""

    model_config = ConfigDict(populate_by_name=True)

    source: Annotated[Source, Field(alias="from")]
    reason: Annotated[str, Field(max_length=REASON_CHARACTERS_MAX)] = ""
    by: Annotated[str, Field(min_length=1, max_length=WHO_CHARACTERS_MAX)] = "an HTTP client"
    accept_loss: bool = False


@service.route("POST", PATH, Operation({202: Answer(Repair, (LOCATION,))}, (), RepairBody, problems=(404, 409)))
async def repair_partition(request: web.Request) -> web.StreamResponse:
    """Make the changelogs of a partition whole again, `from` its `store`, its `changelog` or the `events`.

    202 with the same as GET; the partition stands still meanwhile. `store` writes every row of the store to the
    changelogs that have less; with `accept_loss` also where records were removed that the store has not. `changelog`
    goes on with what the changelogs have, and moves the store aside. `events` does so where every such table is a
    projection, to be rebuilt after that. 409 when there is nothing to repair, or when the partition is being repaired.
    """
    number, engine = _number(request), request.app[ENGINE]
    body = await read_body(request, RepairBody)
    if number not in engine.numbers:
        return await request.app[ROUTER].forward(request, number)
    if engine.repairs.due(number) is not None:
        raise Problem(409, f"partition {number} is being repaired already", reason="under_way")
    if changelog_fault(number) not in engine.faults:
        detail = f"there is nothing to repair in partition {number}: its changelogs have what its store has"
        raise Problem(409, detail, reason="nothing_to_repair")
    asked = Repair(number, body.source, body.by, body.reason, body.accept_loss)
    engine.repair(asked)
    return json_response(asked, 202, {"Location": PATH.format(number=number)})


@service.route("GET", PATH, Operation({200: Repair}, problems=(404, 422)))
async def show_repair(request: web.Request) -> web.StreamResponse:
    """The last repair of a partition since its worker was started: `state` is asked, running, done or refused.

    `rows` were written from the store, `removed` are those that the changelog had and the store has not; `detail` says
    why it was refused, and `aside` is the folder that the store was moved to. What was repaired when, by whom and why
    is kept in the table `repairs`.
    """
    number, engine = _number(request), request.app[ENGINE]
    if number not in engine.numbers:
        return await request.app[ROUTER].forward(request, number)
    last = engine.repairs.last(number)
    if last is None:
        raise Problem(404, f"partition {number} was not repaired since its worker was started")
    return json_response(last)


def _number(request: web.Request) -> int:
    number = number_in_path(request)
    if number >= request.app[ENGINE].settings.partitions:
        raise Problem(404, f"there is no partition {number}")
    return number
