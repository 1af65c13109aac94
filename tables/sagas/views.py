"""The web view of sagas: how far one has come, and everything that happened, in the order in which it did."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from aiohttp import web

from domain.orders import Order
from domain.sagas.definition import Step, step_of
from domain.sagas.machine import NO_ANSWER, Policy, wakes_at
from domain.sagas.state import RUNNING, Saga, StepRun
from engine import Message, Partition, Service, TimeText, format_ms
from engine.web import ENGINE, Operation, Problem, by_key, json_response
from streams.settings import Settings, shop_settings
from tables.orders import ORDERS
from tables.orders.queries import SAGA_PATH
from tables.sagas import SAGAS
from tables.sagas.choreography import DEADLINES, Deadline

service = Service("saga-views")


class Exchange(msgspec.Struct, frozen=True):
    """A command and its answer, with their types; times are production time, null where nothing happened yet."""

    command: str | None
    asked_at: TimeText | None
    reply: str | None
    replied_at: TimeText | None
    error: str | None


class Compensation(Exchange, frozen=True):
    """How a step is undone: the last try; `attempts` is how many were refused or not answered before."""

    attempts: int


class StepView(msgspec.Struct, frozen=True):
    """One step; `line` and `product_id` are null for those that are about the whole order."""

    step: str
    line: int | None
    product_id: str | None
    state: str
    action: Exchange
    compensation: Compensation | None


class Happening(msgspec.Struct, frozen=True):
    """One line of the timeline: `type` is that of the command or the reply, or what the saga itself does."""

    at: TimeText
    type: str
    step: str | None = None
    line: int | None = None
    detail: str | None = None


class SagaView(msgspec.Struct, frozen=True):
    """A saga; `deadline` is when it goes on by itself, for want of an answer or to try again."""

    order_id: str
    state: str
    style: str
    version: int
    reason: str | None
    started_at: TimeText
    ended_at: TimeText | None
    deadline: TimeText | None
    steps: tuple[StepView, ...]
    timeline: tuple[Happening, ...]


@service.route("GET", "/sagas/{order_id}", Operation({200: SagaView}, problems=(404,)))
@by_key("order_id", SAGA_PATH)
async def get_saga(request: web.Request, task: Partition) -> web.StreamResponse:
    """The saga of an order: steps, commands, answers, compensations, deadline and timeline; 404 when it has none."""
    order_id = request.match_info["order_id"]
    saga, order = task.read(SAGAS, order_id), task.read(ORDERS, order_id)
    if saga is None or order is None:
        raise Problem(404, f"there is no saga of order {order_id}")
    return json_response(
        saga_view(saga, order, task.read(DEADLINES, order_id), shop_settings(request.app[ENGINE].settings))
    )


def saga_view(saga: Saga, order: Order, own_deadline: Deadline | None, settings: Settings) -> SagaView:
    """A saga as the web view shows it; a choreographed order has a deadline of its own."""
    steps = tuple(_step_view(saga, order, run) for run in saga.steps)
    if saga.style == "orchestration":
        deadline_ms = wakes_at(saga, Policy.of(settings))
    else:
        deadline_ms = own_deadline.due_ms if own_deadline is not None else None
    return SagaView(
        order_id=saga.order_id,
        state=saga.state,
        style=saga.style,
        version=saga.version,
        reason=saga.reason,
        started_at=_time(saga.started_ms) or "",
        ended_at=_time(saga.ended_ms),
        deadline=_time(deadline_ms),
        steps=steps,
        timeline=tuple(sorted(_timeline(saga, steps), key=lambda happening: happening.at)),
    )


def _step_view(saga: Saga, order: Order, run: StepRun) -> StepView:
    step = step_of(saga, run)
    asked = run.asked_ms is not None
    command = step.action(order, run.line, saga) if asked and step.action is not None else None
    return StepView(
        step=run.name,
        line=run.line or None,
        product_id=order.items[run.line - 1].product_id if run.line else None,
        state=run.state,
        action=Exchange(
            _type(command), _time(run.asked_ms), _type(_reply(step, run)), _time(run.answered_ms), run.error
        ),
        compensation=_compensation(saga, order, step, run),
    )


def _compensation(saga: Saga, order: Order, step: Step, run: StepRun) -> Compensation | None:
    if run.undo_asked_ms is None and run.undo_answered_ms is None:
        return None
    asked = run.undo_asked_ms is not None
    command = step.compensation(order, run.line, saga) if asked and step.compensation is not None else None
    reply: Any = None
    if run.undo_answered_ms is not None and run.undo_error != NO_ANSWER:
        reply = step.event("undone" if run.state == "undone" else "undo_failed")
    return Compensation(
        _type(command),
        _time(run.undo_asked_ms),
        _type(reply),
        _time(run.undo_answered_ms),  # for want of an answer, when waiting for it ended
        run.undo_error,
        run.undo_attempts,
    )


def _reply(step: Step, run: StepRun) -> type[Message] | None:
    if run.answered_ms is None:
        return None
    return step.event("failed" if run.state == "failed" else "done")


def _timeline(saga: Saga, steps: tuple[StepView, ...]) -> Iterator[Happening]:
    for run in saga.steps:
        if run.timed_out_ms is not None:
            yield Happening(_time(run.timed_out_ms) or "", "saga.timed_out", run.name, run.line or None)
    for view in steps:
        for exchange in (view.action, view.compensation):
            if exchange is None:
                continue
            if exchange.asked_at and exchange.command:
                yield Happening(exchange.asked_at, exchange.command, view.step, view.line)
            if exchange.replied_at:
                yield Happening(
                    exchange.replied_at, exchange.reply or "saga.timed_out", view.step, view.line, exchange.error
                )
    if saga.ended_ms is not None and saga.state != RUNNING:
        yield Happening(_time(saga.ended_ms) or "", f"saga.{saga.state}", detail=saga.reason)


def _type(message: Message | type[Message] | None) -> str | None:
    return None if message is None else message.event_type


def _time(ms: int | None) -> str | None:
    return None if ms is None else format_ms(ms)
