"""The order service: turns order commands into order events, state, history and what others are told."""

from datetime import datetime
from typing import cast

import msgspec

from domain.orders import InvalidOrderState, Order, check_requested, decide, evolve, refusal
from engine import Envelope, Service, UnitOfWork, follow_up
from streams.events.integration import to_integration
from streams.events.money import Money
from streams.events.orders import (
    CancelOrder,
    ConfirmOrder,
    OrderCommand,
    OrderEvent,
    OrderPlaced,
    OrderSummaryChanged,
    PlaceOrder,
    ShipOrder,
)
from streams.settings import Settings, shop_settings
from streams.topics import CUSTOMER_ORDER_EVENTS, INTEGRATION_EVENTS, ORDER_COMMANDS, ORDER_EVENTS
from tables.orders import HANDLED_COMMANDS, ORDER_HISTORY, ORDERS, HandledCommand

service = Service(
    "orders",
    tables=(ORDERS, ORDER_HISTORY, HANDLED_COMMANDS),
    topics=(ORDER_EVENTS, CUSTOMER_ORDER_EVENTS, INTEGRATION_EVENTS),
)


commands = service.agent("decide-orders", ORDER_COMMANDS, help="Turn order commands into order events.")


@commands.on(PlaceOrder, ConfirmOrder, CancelOrder, ShipOrder)
def decide_order(command: Envelope[OrderCommand], work: UnitOfWork) -> None:
    """Decide one command, unless it is a repeated one; a refusal is an event too."""
    if work.get(HANDLED_COMMANDS, command.event_id) is not None:
        return
    order = work.get(ORDERS, command.aggregate_id)
    events: tuple[OrderEvent, ...]
    try:
        check_requested(order, command.payload)
        events = decide(order, command.payload, shop_settings(work.settings).price_decimals)
    except InvalidOrderState as error:
        events = (refusal(command.payload, error),)
    for step, event in enumerate(events, start=1):
        _record(work, command, _with_saga(event, shop_settings(work.settings)), str(step))
    work.put(HANDLED_COMMANDS, command.event_id, HandledCommand(command.aggregate_id, work.now_ms))


@service.reaction(ConfirmOrder, CancelOrder)
def decide_for_saga(command: Envelope[OrderCommand], work: UnitOfWork) -> None:
    """Decide what the order's own saga asks for, in the unit of work in which it asks: it can come only once."""
    events: tuple[OrderEvent, ...]
    try:
        events = decide(work.get(ORDERS, command.aggregate_id), command.payload)
    except InvalidOrderState as error:
        events = (refusal(command.payload, error),)
    for step, event in enumerate(events, start=1):
        # The command goes by its cause's id, which other things may follow from too.
        _record(work, command, event, f"{command.event_type}:{step}")


def _with_saga(event: OrderEvent, settings: Settings) -> OrderEvent:
    """The event; an order that is placed is stamped with the style of saga that begins with it."""
    if isinstance(event, OrderPlaced) and settings.saga != "none":
        return msgspec.structs.replace(event, saga=settings.saga)
    return event


def _record(work: UnitOfWork, command: Envelope[OrderCommand], event: OrderEvent, step: str) -> None:
    """Apply an event to the order and its history, and tell the others."""
    before = work.get(ORDERS, command.aggregate_id)
    version = before.version + 1 if before is not None else 1
    envelope = follow_up(command, event, step=step, aggregate_id=command.aggregate_id, aggregate_version=version)
    order = evolve(before, envelope)
    value = work.encode(envelope)
    work.put(ORDERS, order.order_id, order)
    work.put(ORDER_HISTORY, (order.order_id, version), msgspec.Raw(value))
    work.send_raw(ORDER_EVENTS, command.aggregate_id.encode(), value)
    if order.total is not None:
        summary = follow_up(
            envelope,
            _summary(order, event.event_type),
            step="summary",
            aggregate_id=order.order_id,
            aggregate_version=version,
        )
        work.send(CUSTOMER_ORDER_EVENTS, cast(str, order.customer_id), summary)
    published = to_integration(envelope)
    if published is not None:
        work.send_raw(INTEGRATION_EVENTS, command.aggregate_id.encode(), *published)
    work.deliver(envelope)


def _summary(order: Order, change: str) -> OrderSummaryChanged:
    return OrderSummaryChanged(
        order.order_id,
        cast(str, order.customer_id),
        order.status,
        order.item_count,
        cast(Money, order.total),
        cast(datetime, order.created_at),
        order.confirmed_at,
        order.cancelled_at,
        change,
    )
