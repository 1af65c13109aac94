"""HTTP command of losses: let agents go on behind records that a topic no longer has."""

from __future__ import annotations

from typing import Annotated, TypedDict

from aiohttp import web
from pydantic import Field

from engine.declare.operation import Operation
from engine.declare.service import Service
from engine.failures.decisions import REASON_CHARACTERS_MAX
from engine.positions.acceptance import accept_losses
from engine.positions.positions import AcceptedLoss
from engine.web.answers import ENGINE, Problem, json_response
from engine.web.bodies import Body, read_body
from engine.web.routing import ROUTER, number_in_path, task_here

service = Service("gateway-losses")

WHO_CHARACTERS_MAX = 128


class AcceptLossBody(Body):
    """What accepting a loss takes: why, and who does it."""

    reason: Annotated[str, Field(min_length=1, max_length=REASON_CHARACTERS_MAX)]
    by: Annotated[str, Field(min_length=1, max_length=WHO_CHARACTERS_MAX)] = "an HTTP client"


class AcceptedLosses(TypedDict):
    """What was accepted, one item for each agent that goes on."""

    items: list[AcceptedLoss]


@service.route(
    "POST",
    "/topics/{name}/partitions/{number}/accept-loss",
    Operation({200: AcceptedLosses}, (), AcceptLossBody, problems=(404, 409)),
)
async def accept_loss(request: web.Request) -> web.StreamResponse:
    """Let the agents of a topic's partition go on behind records that are gone, for a `{reason}`.

    200 with what was accepted, once it is written down (table `accepted-losses`); 409 when nothing is missing there.
    """
    engine, topic = request.app[ENGINE], request.match_info["name"]
    number = number_in_path(request)
    if not engine.agents_of(topic) or number >= engine.settings.partitions:
        raise Problem(404, f"no agent reads {topic}/{number}")
    body = await read_body(request, AcceptLossBody)
    if task_here(request, number) is None:
        return await request.app[ROUTER].forward(request, number)
    accepted = await accept_losses(engine, topic, number, body.by, body.reason)
    if not accepted:
        raise Problem(409, f"no record of {topic}/{number} is missing for any agent, so there is no loss to accept")
    return json_response(AcceptedLosses(items=list(accepted)))
