"""HTTP commands of sagas."""

from __future__ import annotations

import uuid
from urllib.parse import quote

from aiohttp import web

from agents.http.bodies import ChangeOrderBody
from agents.http.orders import OrderAccepted
from engine import Service
from engine.web import (
    CORRELATION_ID,
    ID_CHARACTERS_MAX,
    LOCATION,
    Answer,
    Operation,
    encode,
    envelope,
    invalid,
    json_response,
    metadata,
    publish_record,
    read_body,
    token_of,
)
from streams.events.sagas import SAGA_TYPES, ResumeSaga
from streams.topics import SAGA_COMMANDS

service = Service("gateway-sagas", topics=(SAGA_COMMANDS,), types=SAGA_TYPES)


@service.route(
    "POST",
    "/sagas/{order_id}/resume",
    Operation({202: Answer(OrderAccepted, (LOCATION,))}, (CORRELATION_ID,), ChangeOrderBody),
)
async def resume_saga(request: web.Request) -> web.StreamResponse:
    """Ask a saga that stands as `compensation_failed` to try again: 202 with a token; other sagas are left alone."""
    order_id = request.match_info["order_id"]
    if len(order_id) > ID_CHARACTERS_MAX:
        raise invalid("order_id", f"1 to {ID_CHARACTERS_MAX} characters")
    body = await read_body(request, ChangeOrderBody)
    command = envelope(ResumeSaga(order_id), body.command_id or str(uuid.uuid4()), body.occurred_at, metadata(request))
    position = await publish_record(request, SAGA_COMMANDS, order_id, encode(request, command))
    answer = OrderAccepted(order_id=order_id, status="processing", token=token_of(request, [position]))
    return json_response(answer, 202, {"Location": f"/sagas/{quote(order_id, safe='')}"})
