"""HTTP commands of orders.

What makes a retry harmless: with an `Idempotency-Key` the first request under it (and the customer) is the order, for
at least seven days. Without one, an explicit `order_id` does the same for the same body: the command's id follows from
both (unless the body gives a `command_id`), and a command takes effect once. The same `order_id` with another body is
another command, which the order refuses. Without either, every request is a new order.
"""

from __future__ import annotations

import uuid
from http import HTTPStatus
from typing import Literal, TypedDict
from urllib.parse import quote

from aiohttp import web
from pydantic import BaseModel

from agents.http.bodies import CancelOrderBody, ChangeOrderBody, PlaceOrderBody
from engine import Metadata, Partition, Position, Service, derived_id
from engine.web import (
    CORRELATION_ID,
    ENGINE,
    ID_CHARACTERS_MAX,
    IDEMPOTENCY_KEY,
    LOCATION,
    ROUTER,
    TIMEOUT_S,
    Answer,
    CommandAsked,
    Engine,
    Operation,
    PartitionTask,
    Problem,
    Unprocessed,
    duration,
    encode,
    envelope,
    id_header,
    invalid,
    json_response,
    metadata,
    outcome_of,
    partition_of,
    publish_record,
    read_body,
    task_here,
    token_of,
    unavailable,
    wait_for_outcome,
)
from streams.events.orders import CancelOrder, ConfirmOrder, OrderCommand, ShipOrder
from streams.topics import ORDER_COMMANDS
from streams.topics import ORDER_REQUESTS as REQUESTS_TOPIC
from tables.orders.queries import ORDER_PATH, OrderView, decision_of, find_order, order_view, refusal_in
from tables.orders.requests import FINGERPRINT_HEADER, ORDER_REQUESTS, OrderRequest, request_key

_ACCEPT_REQUESTS = "accept-requests", REQUESTS_TOPIC.name

service = Service("gateway", topics=(ORDER_COMMANDS, REQUESTS_TOPIC))


class OrderAccepted(TypedDict):
    """A command that is on its way; the token stands for it."""

    order_id: str
    status: Literal["processing"]
    token: str


WAIT = duration("wait", "how long to wait for the read model, such as 2s or 500ms, at most 30s", 0.0)


def change(body: type[BaseModel]) -> Operation:
    """The contract of a command that changes an order."""
    return Operation(
        {200: Answer(OrderView, (LOCATION,)), 202: Answer(OrderAccepted, (LOCATION,))},
        (WAIT, IDEMPOTENCY_KEY, CORRELATION_ID),
        body,
        problems=(409, 410),
    )


@service.route(
    "POST",
    "/orders",
    Operation(
        {201: Answer(OrderView, (LOCATION,)), 202: Answer(OrderAccepted, (LOCATION,))},
        (WAIT, IDEMPOTENCY_KEY, CORRELATION_ID),
        PlaceOrderBody,
        problems=(409, 410),
    ),
)
async def place_order(request: web.Request) -> web.StreamResponse:
    """Place an order: 202 with its id and a token.

    With `?wait=2s` 201 with the order once the read model has it, 202 when that takes longer; 409 when the order cannot
    be placed because of what there is already, 422 when a business rule refuses it, both with `reason`; 410 when it
    came to nothing and records of its partition were lost.
    With an `Idempotency-Key` 409 when it was used for another body.
    """
    wait_s = WAIT.read(request)
    key = id_header(request, IDEMPOTENCY_KEY.name)
    body = await read_body(request, PlaceOrderBody)
    origin = metadata(request, body.customer_id)
    if key is None:
        order_id, command_id = _ids(body)
        command = envelope(body.command(order_id), command_id, body.occurred_at, origin)
        position = await publish_record(request, ORDER_COMMANDS, order_id, encode(request, command))
        return await _accepted(request, order_id, command_id, position, wait_s)
    number = partition_of(request, request_key(body.customer_id, key))
    if task_here(request, number) is None:
        return await request.app[ROUTER].forward(request, number)
    known = await _accept_once(request, body, key, number, origin)
    # What the request became is in order-commands by now: the token of its end stands for it.
    commands = partition_of(request, known.order_id)
    end = await request.app[ENGINE].broker.end_offset(ORDER_COMMANDS.name, commands)
    position = Position(ORDER_COMMANDS.name, commands, max(0, end - 1))
    return await _accepted(request, known.order_id, known.command_id, position, wait_s)


@service.route("POST", "/orders/{order_id}/confirm", change(ChangeOrderBody))
async def confirm_order(request: web.Request) -> web.StreamResponse:
    """Ask to confirm a pending order: 202 with a token; the audit trail tells what became of it.

    With `?wait=2s` 200 with the order once that is done, 202 when it takes longer; 409 or 422 with `reason` when the
    order refuses it.
    """
    body = await read_body(request, ChangeOrderBody)
    return await _change(request, body, ConfirmOrder(_order_id(request)))


@service.route("POST", "/orders/{order_id}/cancel", change(CancelOrderBody))
async def cancel_order(request: web.Request) -> web.StreamResponse:
    """Ask to cancel an order: 202 with a token; the audit trail tells what became of it.

    With `?wait=2s` 200 with the order once that is done, 202 when it takes longer; 409 or 422 with `reason` when the
    order refuses it.
    """
    body = await read_body(request, CancelOrderBody)
    return await _change(request, body, CancelOrder(_order_id(request), body.reason))


@service.route("POST", "/orders/{order_id}/ship", change(ChangeOrderBody))
async def ship_order(request: web.Request) -> web.StreamResponse:
    """Ask to send a confirmed order away: 202 with a token; the audit trail tells what became of it.

    With `?wait=2s` 200 with the order once that is done, 202 when it takes longer; 409 or 422 with `reason` when the
    order refuses it.
    """
    body = await read_body(request, ChangeOrderBody)
    return await _change(request, body, ShipOrder(_order_id(request)))


@service.query("order-outcome")
async def order_outcome(engine: Engine, task: PartitionTask, asked: CommandAsked) -> OrderView | None:
    """What `?wait=` of a command answers, of the order's partition."""
    return await outcome_of(
        engine, task, asked, ORDER_PATH[0], lambda partition: outcome(partition, asked.key, asked.command_id)
    )


def outcome(partition: Partition, order_id: str, command_id: str) -> OrderView:
    """The order that the command placed or changed; raises a problem with the reason when it was refused.

    Raises Unprocessed when nothing came of it.
    """
    decision = decision_of(partition, order_id, command_id)
    order = find_order(partition, order_id)
    if decision is not None and (refused := refusal_in(decision)) is not None:
        status = 409 if refused.reason.startswith("already_") else 422
        raise Problem(status, refused.detail, reason=refused.reason, order_id=order_id)
    if decision is None or order is None:
        raise Unprocessed(f"the command for order {order_id} is not processed", order_id=order_id)
    return order_view(order)


def location(order_id: str) -> str:
    """Where an order can be read."""
    return f"/orders/{quote(order_id, safe='')}"


def _order_id(request: web.Request) -> str:
    order_id = request.match_info["order_id"]
    if len(order_id) > ID_CHARACTERS_MAX:
        raise invalid("order_id", f"1 to {ID_CHARACTERS_MAX} characters")
    return order_id


def _ids(body: PlaceOrderBody) -> tuple[str, str]:
    """Ids of the order and of the command that places it; see the module."""
    if body.order_id is None:
        return str(uuid.uuid4()), body.command_id or str(uuid.uuid4())
    return body.order_id, body.command_id or derived_id(body.order_id, f"place:{body.fingerprint()}")


async def _change(request: web.Request, body: ChangeOrderBody, command: OrderCommand) -> web.Response:
    """Publish a command that changes an order; the same Idempotency-Key makes it the same command."""
    wait_s = WAIT.read(request)
    key = id_header(request, IDEMPOTENCY_KEY.name)
    order_id = command.order_id
    command_id = body.command_id
    if command_id is None:
        command_id = str(uuid.uuid4()) if key is None else derived_id(order_id, f"{command.event_type}:{key}")
    value = encode(request, envelope(command, command_id, body.occurred_at, metadata(request)))
    position = await publish_record(request, ORDER_COMMANDS, order_id, value)
    return await _accepted(request, order_id, command_id, position, wait_s, HTTPStatus.OK)


async def _accept_once(
    request: web.Request, body: PlaceOrderBody, key: str, number: int, origin: Metadata
) -> OrderRequest:
    """The first request under the key, which may be this one; this worker owns its partition.

    Raises problems: 409 when its body was another one, 503 when it is not known within TIMEOUT_S.
    """
    row_key, fingerprint = request_key(body.customer_id, key), body.fingerprint()
    known = request.app[ENGINE].task(number).read(ORDER_REQUESTS, row_key)
    if known is None:
        order_id = body.order_id or derived_id(row_key, "order")
        command_id = body.command_id or str(uuid.uuid4())
        command = envelope(body.command(order_id), command_id, body.occurred_at, origin)
        headers = ((FINGERPRINT_HEADER, fingerprint.encode()),)
        position = await publish_record(request, REQUESTS_TOPIC, row_key, encode(request, command), headers)
        task = request.app[ENGINE].task(number)
        if not await task.waiters.wait(*_ACCEPT_REQUESTS, position.offset + 1, TIMEOUT_S, is_exact=True):
            raise unavailable("the request is accepted, but not yet compared with others under its Idempotency-Key")
        task = request.app[ENGINE].task(number)
        known = task.read(ORDER_REQUESTS, row_key)
        if known is None and not await task.losses.fits(_ACCEPT_REQUESTS):
            raise unavailable("what became of the request cannot be known now: see the faults")
    if known is None:
        raise Problem(500, "the request could not be processed: see the dead letters of order-requests")
    if known.fingerprint != fingerprint:
        raise Problem(409, "this Idempotency-Key was used for another body", order_id=known.order_id)
    return known


async def _accepted(
    request: web.Request,
    order_id: str,
    command_id: str,
    position: Position,
    wait_s: float,
    done: HTTPStatus = HTTPStatus.CREATED,
) -> web.Response:
    """202, or `done` with what became of the command if that is known within `wait_s` seconds."""
    if wait_s > 0:
        found = await wait_for_outcome(request, order_outcome, position, order_id, command_id, wait_s)
        if found is not None:
            return json_response(found, done, {"Location": location(order_id)})
    answer = OrderAccepted(order_id=order_id, status="processing", token=token_of(request, [position]))
    return json_response(answer, 202, {"Location": location(order_id)})
