"""Many orders in one request: newline-delimited JSON, each line an order of its own."""

from __future__ import annotations

import uuid

from aiohttp import web

from agents.http.bodies import PlaceOrderBody
from agents.http.lines import LinesAccepted, take_lines
from engine import Metadata, Service, derived_id
from engine.web import (
    CORRELATION_ID,
    ENGINE,
    IDEMPOTENCY_KEY,
    Lines,
    Operation,
    encode,
    envelope,
    id_header,
    metadata,
    parse,
)
from streams.topics import ORDER_COMMANDS

service = Service("gateway-batch", topics=(ORDER_COMMANDS,))


@service.route(
    "POST",
    "/orders/batch",
    Operation({202: LinesAccepted}, (IDEMPOTENCY_KEY, CORRELATION_ID), Lines(PlaceOrderBody)),
)
async def place_orders(request: web.Request) -> web.StreamResponse:
    """Place an order per line: 202 `{accepted, rejected, problems, token}`, see `take_lines`.

    A line without `order_id` gets a new id, or with an `Idempotency-Key` one that follows from the key and the line's
    number, so that the same request may be sent again.
    """
    key = id_header(request, IDEMPOTENCY_KEY.name)
    origin, settings = metadata(request), request.app[ENGINE].settings

    def command(line: bytes, number: int) -> tuple[str, bytes]:
        body = parse(PlaceOrderBody, line, settings)
        order_id = body.order_id or (str(uuid.uuid4()) if key is None else derived_id(key, f"line {number}"))
        command_id = body.command_id or derived_id(order_id, f"place:{body.fingerprint()}")
        by_customer = Metadata(origin.correlation_id, user_id=body.customer_id)
        return order_id, encode(request, envelope(body.command(order_id), command_id, body.occurred_at, by_customer))

    return await take_lines(request, ORDER_COMMANDS, command)
