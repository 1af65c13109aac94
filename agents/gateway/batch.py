"""Many orders in one request: newline-delimited JSON, each line an order of its own."""

from __future__ import annotations

import asyncio
import uuid
from typing import Any

from aiohttp import web
from pydantic import ValidationError

from agents.gateway.bodies import PlaceOrderBody, field_errors, parse
from agents.gateway.publish import encode, envelope, id_header, metadata, publish_commands
from streams.envelope import Metadata, derived_id
from streams.service import Service
from streams.tokens import encode_token
from streams.topics import ORDER_COMMANDS
from streams.web import Problem, json_response

LINES_PER_SLICE = 100  # about 5 ms; the loop is then given back
PROBLEMS_MAX = 1000

service = Service("gateway-batch", topics=(ORDER_COMMANDS,))


@service.route("POST", "/orders/batch")
async def place_orders(request: web.Request) -> web.StreamResponse:
    """Place an order per line: 202 `{accepted, rejected, problems, token}`.

    `problems` holds `{line, title, status, detail, errors}` of the first 1000 rejected lines, counted from 1; blank
    lines are ignored. The token (null when nothing was accepted) stands for all orders together. A line without
    `order_id` gets a new id, or with an `Idempotency-Key` one that follows from the key and the line's number, so that
    the same request may be sent again. The body has at most 1 MiB, like every other.
    """
    key = id_header(request, "Idempotency-Key")
    origin = metadata(request)
    commands: list[tuple[str, bytes]] = []
    problems: list[dict[str, Any]] = []
    rejected = 0
    for number, line in enumerate((await request.read()).split(b"\n"), start=1):
        if number % LINES_PER_SLICE == 0:
            await asyncio.sleep(0)
        if not line.strip():
            continue
        try:
            commands.append(_command(request, line, key, number, origin))
        except Problem as problem:
            rejected += 1
            if len(problems) < PROBLEMS_MAX:
                problems.append({"line": number, **problem.body})
    positions = await publish_commands(request, commands) if commands else []
    answer = {
        "accepted": len(commands),
        "rejected": rejected,
        "problems": problems,
        "token": encode_token(positions) if positions else None,
    }
    return json_response(answer, 202)


def _command(request: web.Request, line: bytes, key: str | None, number: int, origin: Metadata) -> tuple[str, bytes]:
    """Order id and record of one line; raises a problem when it cannot be used."""
    try:
        body = parse(PlaceOrderBody, line)
    except ValidationError as error:
        errors = field_errors(error)
        raise Problem(422, f"{len(errors)} fields cannot be used", errors=errors) from error
    order_id = body.order_id or (str(uuid.uuid4()) if key is None else derived_id(key, f"line {number}"))
    command_id = body.command_id or derived_id(order_id, f"place:{body.fingerprint()}")
    origin = Metadata(origin.correlation_id, user_id=body.customer_id)
    return order_id, encode(request, envelope(body.command(order_id), command_id, body.occurred_at, origin))
