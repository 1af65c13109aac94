"""The order service: turns order commands into order events, state, history and what others are told."""

from datetime import datetime
from typing import cast

import msgspec

from agents.domain.orders import InvalidOrderState, decide, evolve, refusal
from streams.engine.batch import Batches
from streams.engine.handlers import Handlers
from streams.engine.unit_of_work import UnitOfWork
from streams.envelope import Envelope, follow_up
from streams.events.integration import to_integration
from streams.events.money import Money
from streams.events.orders import (
    CancelOrder,
    ConfirmOrder,
    OrderCommand,
    OrderEvent,
    OrderSummaryChanged,
    PlaceOrder,
)
from streams.service import Service
from streams.topics import CUSTOMER_ORDER_EVENTS, INTEGRATION_EVENTS, ORDER_COMMANDS, ORDER_EVENTS
from tables.orders import HANDLED_COMMANDS, ORDER_HISTORY, ORDERS, HandledCommand, Order

service = Service(
    "orders",
    tables=(ORDERS, ORDER_HISTORY, HANDLED_COMMANDS),
    topics=(ORDER_EVENTS, CUSTOMER_ORDER_EVENTS, INTEGRATION_EVENTS),
)
handlers = Handlers()


@service.agent(ORDER_COMMANDS)
async def decide_orders(batches: Batches) -> None:
    """Turn order commands into order events."""
    async for batch in batches:
        await batch.process(handlers)


@handlers.on(PlaceOrder, ConfirmOrder, CancelOrder)
def decide_order(command: Envelope[OrderCommand], work: UnitOfWork) -> None:
    """Decide one command, unless it is a repeated one; a refusal is an event too."""
    if work.get(HANDLED_COMMANDS, command.event_id) is not None:
        return
    order_id = command.aggregate_id
    order = work.get(ORDERS, order_id)
    try:
        events = decide(order, command.payload)
    except InvalidOrderState as error:
        events = (refusal(command.payload, error),)
    for step, event in enumerate(events, start=1):
        order = _record(work, order, command, event, step)
    work.put(HANDLED_COMMANDS, command.event_id, HandledCommand(order_id, work.record.timestamp_ms))


def _record(
    work: UnitOfWork, order: Order | None, command: Envelope[OrderCommand], event: OrderEvent, step: int
) -> Order:
    """Apply an event to the order and its history, and tell the others."""
    version = order.version + 1 if order is not None else 1
    envelope = follow_up(command, event, step=str(step), aggregate_id=command.aggregate_id, aggregate_version=version)
    order = evolve(order, envelope)
    value = work.encode(envelope)
    work.put(ORDERS, order.order_id, order)
    work.put(ORDER_HISTORY, (order.order_id, version), msgspec.Raw(value))
    work.send_raw(ORDER_EVENTS, command.aggregate_id.encode(), value)
    if order.total is not None:
        summary = follow_up(
            envelope, _summary(order), step="summary", aggregate_id=order.order_id, aggregate_version=version
        )
        work.send(CUSTOMER_ORDER_EVENTS, cast(str, order.customer_id), summary)
    published = to_integration(envelope)
    if published is not None:
        work.send_raw(INTEGRATION_EVENTS, command.aggregate_id.encode(), *published)
    return order


def _summary(order: Order) -> OrderSummaryChanged:
    return OrderSummaryChanged(
        order.order_id,
        cast(str, order.customer_id),
        order.status,
        order.item_count,
        cast(Money, order.total),
        cast(datetime, order.created_at),
        order.confirmed_at,
        order.cancelled_at,
    )
