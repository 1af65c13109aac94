"""The inventory service: turns stock commands into stock events, state, and answers to the sagas of orders."""

from typing import Any

from domain.inventory import (
    LineCommand,
    LineEvent,
    StockEvent,
    decide,
    evolve,
    not_reserved,
    outcome,
)
from engine import Envelope, Service, UnitOfWork, follow_up
from streams.events.integration import to_integration
from streams.events.inventory import (
    INVENTORY_TYPES,
    AddStock,
    AdjustStock,
    InventoryRejected,
    ReleaseStock,
    ReserveStock,
    ShipStock,
)
from streams.topics import INTEGRATION_EVENTS, INVENTORY_COMMANDS, INVENTORY_EVENTS, SAGA_REPLIES
from tables.inventory import HANDLED_STOCK_COMMANDS, RESERVATIONS, STOCK, HandledStockCommand, ReservationKey

service = Service(
    "inventory",
    tables=(STOCK, RESERVATIONS, HANDLED_STOCK_COMMANDS),
    topics=(INVENTORY_EVENTS, INTEGRATION_EVENTS, SAGA_REPLIES),
    types=INVENTORY_TYPES,
)


commands = service.agent("decide-stock", INVENTORY_COMMANDS, help="Turn stock commands into stock events.")


@commands.on(AddStock, AdjustStock)
def change_stock(command: Envelope[AddStock | AdjustStock], work: UnitOfWork) -> None:
    """Decide what changes the shelf, unless it is a repeated command."""
    if work.get(HANDLED_STOCK_COMMANDS, command.event_id) is None:
        event = decide(work.get(STOCK, command.aggregate_id), None, command.payload)
        _record(work, command, event, None)
        _mark(work, command, event)


@commands.on(ReserveStock, ReleaseStock, ShipStock)
def change_line(command: Envelope[LineCommand], work: UnitOfWork) -> None:
    """Decide what becomes of a line's pieces; a repeated command is answered and changes nothing."""
    key = ReservationKey(command.aggregate_id, command.payload.order_id, command.payload.line)
    stock, reservation = work.get(STOCK, key.product_id), work.get(RESERVATIONS, key)
    known: LineEvent | InventoryRejected | None = outcome(stock, reservation, command.payload)
    if known is None and work.get(HANDLED_STOCK_COMMANDS, command.event_id) is not None:
        known = not_reserved(command.payload)  # the only refusal that leaves no trace in the line itself
    if known is not None:
        again = follow_up(command, known, step="again", aggregate_id=key.product_id)
        work.send_raw(SAGA_REPLIES, key.order_id.encode(), work.encode(again))
        return
    event = decide(stock, reservation, command.payload)
    _record(work, command, event, key)
    if isinstance(event, InventoryRejected):
        _mark(work, command, event)


def _record(work: UnitOfWork, command: Envelope[Any], event: StockEvent, key: ReservationKey | None) -> None:
    """Apply an event to the stock and the line it is about, and tell the others."""
    product_id = command.aggregate_id
    before = work.get(STOCK, product_id)
    version = before.version + 1 if before is not None else 1
    envelope = follow_up(command, event, step="1", aggregate_id=product_id, aggregate_version=version)
    stock, reservation = evolve(before, work.get(RESERVATIONS, key) if key is not None else None, envelope)
    value = work.encode(envelope)
    work.put(STOCK, product_id, stock)
    work.send_raw(INVENTORY_EVENTS, product_id.encode(), value)
    if key is not None:
        if reservation is not None:
            work.put(RESERVATIONS, key, reservation)
        work.send_raw(SAGA_REPLIES, key.order_id.encode(), value)
    published = to_integration(envelope)
    if published is not None:
        work.send_raw(INTEGRATION_EVENTS, product_id.encode(), *published)


def _mark(work: UnitOfWork, command: Envelope[Any], event: StockEvent) -> None:
    refused = (event.reason, event.detail) if isinstance(event, InventoryRejected) else None
    mark = HandledStockCommand(command.aggregate_id, work.now_ms, refused)
    work.put(HANDLED_STOCK_COMMANDS, command.event_id, mark)
