"""The fold of stock: what the events of `inventory-events` make of each product and each line that reserves of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from domain.inventory import FAILED, RELEASED, RESERVED, SHIPPED, Reservation, Stock
from engine import AnyTable, Envelope, Record
from streams.events.inventory import (
    InventoryRejected,
    StockAdded,
    StockReleased,
    StockReleaseFailed,
    StockReservationFailed,
    StockReserved,
    StockShipped,
)
from streams.topics import INVENTORY_EVENTS
from tables.audit.findings import Findings
from tables.audit.folds import RowLedger, Subject
from tables.audit.ledger import Entry, Ledger, Scratch
from tables.inventory import RESERVATIONS, STOCK, ReservationKey


class StockFold:
    """Makes the rows of `stock` and `reservations`."""

    def __init__(self, findings: Findings, scratch: Scratch) -> None:
        self._stock: Ledger[Entry[Stock]] = Ledger(Entry[Stock], "stock", scratch)
        self._lines: Ledger[Entry[Reservation]] = Ledger(Entry[Reservation], "reservations", scratch)
        self.ledgers: Mapping[AnyTable, RowLedger] = {STOCK: self._stock, RESERVATIONS: self._lines}
        self._subject = Subject(INVENTORY_EVENTS.name, "product", findings)

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next event in."""
        subject, key = self._subject, event.aggregate_id.encode()
        entry = self._stock.get(key)
        subject.check_place(record, event, event.aggregate_id)
        version = subject.next_version(record, event, entry.row.version if entry is not None else 0)
        if version is None:
            return
        subject.check_id(record, event, ("1",))
        before = entry.row if entry is not None else Stock(event.aggregate_id)
        before = replace(before, version=version)
        payload = event.payload
        if isinstance(payload, StockAdded):
            after, wrong = _stocked(before, payload)
        elif isinstance(payload, InventoryRejected):
            after, wrong = before, None
        else:
            after, wrong = self._line(before, payload, record.offset)
        if wrong is None and not 0 <= after.reserved <= after.on_hand:
            wrong = f"{after.reserved} of {after.on_hand} pieces cannot be reserved"
        if wrong is not None:
            subject.impossible(record, event, wrong)
        self._stock.put(key, Entry(after, record.offset), is_new=entry is None)

    def _line(self, stock: Stock, payload: Any, offset: int) -> tuple[Stock, str | None]:
        """The stock after an event of a line, which is kept, and what is wrong with the event."""
        key = RESERVATIONS.key.encode(ReservationKey(payload.product_id, payload.order_id, payload.line))
        entry = self._lines.get(key)
        before = entry.row if entry is not None else None
        after, wrong = _after(stock, before, payload)
        self._lines.put(key, Entry(after, offset), is_new=entry is None)
        reserved, on_hand = stock.reserved, stock.on_hand
        match payload:
            case StockReserved(quantity=pieces):
                reserved += pieces
            case StockReleased(quantity=pieces):
                reserved -= pieces
            case StockShipped(quantity=pieces):
                reserved, on_hand = reserved - pieces, on_hand - pieces
        return replace(stock, reserved=reserved, on_hand=on_hand), wrong


def _stocked(stock: Stock, event: StockAdded) -> tuple[Stock, str | None]:
    """The stock after pieces came or went; they have to add up."""
    wrong = None
    if stock.on_hand + event.quantity != event.on_hand:
        wrong = f"{stock.on_hand} pieces and {event.quantity} more are not {event.on_hand}"
    return replace(stock, on_hand=event.on_hand, stocked=True), wrong


def _after(stock: Stock, line: Reservation | None, event: Any) -> tuple[Reservation, str | None]:
    """A line after an event, and what is wrong with the event."""
    held = line.quantity if line is not None else 0
    state = line.state if line is not None else None
    match event:
        case StockReserved():
            wrong = None if line is None else f"line {event.line} of order {event.order_id} was {state} before"
            return Reservation(RESERVED, event.quantity, event.quantity, stock.on_hand - stock.reserved), wrong
        case StockReservationFailed():
            wrong = f"line {event.line} of order {event.order_id} holds pieces" if state == RESERVED else None
            return Reservation(state or FAILED, 0, event.quantity, event.available, event.reason), wrong
        case StockReleased():
            wrong = None if event.quantity == held else f"{event.quantity} pieces are released of {held} reserved"
            return Reservation(RELEASED, 0) if line is None else replace(line, state=RELEASED), wrong
        case StockReleaseFailed():
            wrong = None if state == SHIPPED else f"line {event.line} of order {event.order_id} is {state}"
            return replace(line or Reservation(FAILED, 0), reason=event.reason), wrong
        case StockShipped():
            wrong = None
            if state != RESERVED or event.quantity != held:
                wrong = f"{event.quantity} pieces are shipped of a line that is {state} with {held}"
            return replace(line or Reservation(FAILED, 0), state=SHIPPED), wrong
    return line or Reservation(FAILED, 0), f"{event.event_type} is not an event of a line"
