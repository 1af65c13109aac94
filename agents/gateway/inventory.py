"""HTTP commands of stock, one by one or many in one request."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal, TypedDict
from urllib.parse import quote

from aiohttp import web
from pydantic import Field

from agents.domain.inventory import ON_HAND_MAX
from agents.gateway.bodies import Body, Id, Time, parse
from agents.gateway.lines import LinesAccepted, take_lines
from agents.gateway.orders import read_body
from agents.gateway.publish import (
    CORRELATION_ID,
    ID_CHARACTERS_MAX,
    IDEMPOTENCY_KEY,
    encode,
    envelope,
    id_header,
    metadata,
    publish,
)
from streams.envelope import Metadata, derived_id
from streams.events.inventory import INVENTORY_TYPES, AdjustStock
from streams.operation import LOCATION, Answer, Lines, Operation
from streams.service import Service
from streams.tokens import encode_token
from streams.topics import INVENTORY_COMMANDS
from streams.web import ENGINE, invalid, json_response

service = Service("gateway-inventory", topics=(INVENTORY_COMMANDS,), types=INVENTORY_TYPES)


class AdjustStockBody(Body):
    """What `PUT /inventory/{product_id}` takes: all pieces on the shelf, reserved ones included."""

    quantity: Annotated[int, Field(ge=0, le=ON_HAND_MAX)]
    occurred_at: Annotated[Time | None, Field(strict=False)] = None
    command_id: Id | None = None


class AdjustStockLine(AdjustStockBody):
    """A line of `POST /inventory/batch`."""

    product_id: Id


class StockAccepted(TypedDict):
    """A command that is on its way; the token stands for it."""

    product_id: str
    status: Literal["processing"]
    token: str


@service.route(
    "PUT",
    "/inventory/{product_id}",
    Operation({202: Answer(StockAccepted, (LOCATION,))}, (IDEMPOTENCY_KEY, CORRELATION_ID), AdjustStockBody),
)
async def adjust_stock(request: web.Request) -> web.StreamResponse:
    """Say how many pieces of a product there are: 202 with a token.

    The same `Idempotency-Key`, or `command_id`, makes it the same command, which takes effect once. Fewer than are
    reserved are refused by an event `inventory.rejected`: the view then shows no change.
    """
    product_id = request.match_info["product_id"]
    if len(product_id) > ID_CHARACTERS_MAX:
        raise invalid("product_id", f"1 to {ID_CHARACTERS_MAX} characters")
    key = id_header(request, IDEMPOTENCY_KEY.name)
    body = await read_body(request, AdjustStockBody)
    value = _record(request, product_id, body, key, metadata(request))
    position = await publish(request, INVENTORY_COMMANDS, product_id, value)
    answer = StockAccepted(product_id=product_id, status="processing", token=encode_token([position]))
    return json_response(answer, 202, {"Location": f"/inventory/{quote(product_id, safe='')}"})


@service.route(
    "POST",
    "/inventory/batch",
    Operation({202: LinesAccepted}, (IDEMPOTENCY_KEY, CORRELATION_ID), Lines(AdjustStockLine)),
)
async def adjust_stocks(request: web.Request) -> web.StreamResponse:
    """Say how many pieces there are of a product per line (NDJSON): 202 `{accepted, rejected, problems, token}`.

    A line is `{product_id, quantity, occurred_at?, command_id?}`; for the rest see `take_lines`. With an
    `Idempotency-Key` the same request may be sent again: each line is then the same command, which takes effect once.
    """
    key = id_header(request, IDEMPOTENCY_KEY.name)
    origin, settings = metadata(request), request.app[ENGINE].settings

    def command(line: bytes, number: int) -> tuple[str, bytes]:
        body = parse(AdjustStockLine, line, settings)
        line_key = None if key is None else f"{key}:line {number}"
        return body.product_id, _record(request, body.product_id, body, line_key, origin)

    return await take_lines(request, INVENTORY_COMMANDS, command)


def _record(request: web.Request, product_id: str, body: AdjustStockBody, key: str | None, origin: Metadata) -> bytes:
    """The record of a command; its id is the body's, or follows from product and key, or is new."""
    command = AdjustStock(product_id, body.quantity)
    command_id = body.command_id
    if command_id is None:
        command_id = str(uuid.uuid4()) if key is None else derived_id(product_id, f"{command.event_type}:{key}")
    return encode(request, envelope(command, command_id, body.occurred_at, origin))
