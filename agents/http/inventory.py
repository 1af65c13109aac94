"""HTTP commands of stock, one by one or many in one request."""

from __future__ import annotations

import uuid
from typing import Annotated, Literal, TypedDict
from urllib.parse import quote

from aiohttp import web
from pydantic import Field

from agents.http.lines import LinesAccepted, take_lines
from domain.inventory import BELOW_RESERVED, ON_HAND_MAX
from engine import Metadata, Partition, Service, derived_id
from engine.web import (
    CORRELATION_ID,
    ENGINE,
    ID_CHARACTERS_MAX,
    IDEMPOTENCY_KEY,
    LOCATION,
    Answer,
    Body,
    CommandAsked,
    Engine,
    Id,
    Lines,
    Operation,
    PartitionTask,
    Problem,
    Time,
    Unprocessed,
    duration,
    encode,
    envelope,
    id_header,
    invalid,
    json_response,
    metadata,
    outcome_of,
    parse,
    publish_record,
    read_body,
    token_of,
    wait_for_outcome,
)
from streams.events.inventory import INVENTORY_TYPES, AdjustStock
from streams.topics import INVENTORY_COMMANDS
from tables.inventory import HANDLED_STOCK_COMMANDS, INVENTORY_PATH, InventoryView, find_stock, inventory_view

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


WAIT = duration("wait", "how long to wait until the stock is changed, such as 2s or 500ms, at most 30s", 0.0)


@service.route(
    "PUT",
    "/inventory/{product_id}",
    Operation(
        {200: Answer(InventoryView, (LOCATION,)), 202: Answer(StockAccepted, (LOCATION,))},
        (WAIT, IDEMPOTENCY_KEY, CORRELATION_ID),
        AdjustStockBody,
        problems=(409,),
    ),
)
async def adjust_stock(request: web.Request) -> web.StreamResponse:
    """Say how many pieces of a product there are: 202 with a token.

    The same `Idempotency-Key`, or `command_id`, makes it the same command, which takes effect once. Fewer than are
    reserved are refused by an event `inventory.rejected`: the view then shows no change. With `?wait=2s` 200 with the
    stock once that is done, 202 when it takes longer; 409 or 422 with `reason` when it is refused.
    """
    wait_s = WAIT.read(request)
    product_id = request.match_info["product_id"]
    if len(product_id) > ID_CHARACTERS_MAX:
        raise invalid("product_id", f"1 to {ID_CHARACTERS_MAX} characters")
    key = id_header(request, IDEMPOTENCY_KEY.name)
    body = await read_body(request, AdjustStockBody)
    command_id = _command_id(product_id, body, key)
    value = _record(request, product_id, body, command_id, metadata(request))
    position = await publish_record(request, INVENTORY_COMMANDS, product_id, value)
    if wait_s > 0:
        found = await wait_for_outcome(request, stock_outcome, position, product_id, command_id, wait_s)
        if found is not None:
            return json_response(found, 200, {"Location": _location(product_id)})
    answer = StockAccepted(product_id=product_id, status="processing", token=token_of(request, [position]))
    return json_response(answer, 202, {"Location": _location(product_id)})


@service.query("stock-outcome")
async def stock_outcome(engine: Engine, task: PartitionTask, asked: CommandAsked) -> InventoryView | None:
    """What `?wait=` of a command answers, of the product's partition."""
    return await outcome_of(
        engine, task, asked, INVENTORY_PATH[-1], lambda partition: outcome(partition, asked.key, asked.command_id)
    )


def outcome(task: Partition, product_id: str, command_id: str) -> InventoryView:
    """The stock that the command changed; raises a problem with the reason when it was refused.

    Raises Unprocessed when nothing came of it.
    """
    handled, stock = task.read(HANDLED_STOCK_COMMANDS, command_id), find_stock(task, product_id)
    if handled is not None and handled.refused is not None:
        reason, detail = handled.refused
        raise Problem(409 if reason == BELOW_RESERVED else 422, detail, reason=reason, product_id=product_id)
    if handled is not None and handled.product_id != product_id:
        detail = f"the command id was used for product {handled.product_id}: this command needs another one"
        raise Problem(409, detail, reason="already_used", product_id=product_id)
    if handled is None or stock is None:
        raise Unprocessed(f"the command for product {product_id} is not processed", product_id=product_id)
    return inventory_view(stock)


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
        command_id = _command_id(body.product_id, body, line_key)
        return body.product_id, _record(request, body.product_id, body, command_id, origin)

    return await take_lines(request, INVENTORY_COMMANDS, command)


def _command_id(product_id: str, body: AdjustStockBody, key: str | None) -> str:
    """The body's own id of the command, or one that follows from product and key, or a new one."""
    if body.command_id is not None:
        return body.command_id
    return str(uuid.uuid4()) if key is None else derived_id(product_id, f"{AdjustStock.event_type}:{key}")


def _record(request: web.Request, product_id: str, body: AdjustStockBody, command_id: str, origin: Metadata) -> bytes:
    command = AdjustStock(product_id, body.quantity)
    return encode(request, envelope(command, command_id, body.occurred_at, origin))


def _location(product_id: str) -> str:
    return f"/inventory/{quote(product_id, safe='')}"
