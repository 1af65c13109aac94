"""The fold of orders: what the events of `order-events` make of each order and its history."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from domain.orders import CANCELLED, CONFIRMED, PENDING, REJECTED, UNKNOWN, Order
from engine import NUMBERED_KEY, AnyTable, Envelope, Record
from engine.inspection import StoreSnapshot
from streams.events.money import EXACT_SUMS
from streams.events.orders import (
    CancelOrder,
    ConfirmOrder,
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OrderRejected,
    OrderShipped,
    PlaceOrder,
)
from streams.topics import ORDER_EVENTS
from tables.audit.findings import ROW_DIFFERS, ROW_MISSING, Findings
from tables.audit.folds import RowLedger, Subject
from tables.audit.ledger import Entry, Ledger, Scratch
from tables.orders import ORDER_HISTORY, ORDERS

_COMMANDS: Final = {
    OrderConfirmed.event_type: ConfirmOrder.event_type,
    OrderCancelled.event_type: CancelOrder.event_type,
}


class OrderEntry(Entry[Order]):
    """The order, and of its beginning what its saga has to repeat."""

    placed_id: str | None = None
    correlation_id: str | None = None
    user_id: str | None = None
    placed_at: datetime | None = None


class OrderFold:
    """Makes the rows of `orders`, and holds each event against its row in `order-history`."""

    def __init__(self, rows: StoreSnapshot, findings: Findings, scratch: Scratch) -> None:
        self.entries: Ledger[OrderEntry] = Ledger(OrderEntry, "orders", scratch)
        self.ledgers: Mapping[AnyTable, RowLedger] = {ORDERS: self.entries}  # type: ignore[dict-item]
        self.history_rows = 0  # that belong to an event
        self.sagas = 0  # that were begun
        self.choreographed = 0  # of these
        self._rows = rows
        self._findings = findings
        self._subject = Subject(ORDER_EVENTS.name, "order", findings)

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next event in."""
        subject, key = self._subject, event.aggregate_id.encode()
        entry = self.entries.get(key)
        subject.check_place(record, event, event.aggregate_id)
        version = subject.next_version(record, event, entry.row.version if entry is not None else 0)
        if version is None:
            return
        subject.check_id(record, event, _steps(event))
        self._check_history(record, event.aggregate_id, version)
        after = entry if entry is not None else OrderEntry(_nothing(event.aggregate_id), 0)
        wrong = _wrong(after.row, event.payload)
        if wrong is not None:
            subject.impossible(record, event, wrong)
        after.row, after.offset = _after(after.row, event, version), record.offset
        if isinstance(event.payload, OrderPlaced):
            after.placed_id, after.placed_at = event.event_id, event.timestamp
            after.correlation_id, after.user_id = event.metadata.correlation_id, event.metadata.user_id
            self.sagas += after.row.saga is not None
            self.choreographed += after.row.saga == "choreography"
        self.entries.put(key, after, is_new=entry is None)

    def _check_history(self, record: Record, order_id: str, version: int) -> None:
        raw = self._rows.read_raw(ORDER_HISTORY, NUMBERED_KEY.encode((order_id, version)))
        place = ORDER_EVENTS.name, record.offset, ORDER_HISTORY.name, f"{order_id}, {version}"
        if raw is None:
            self._findings.add(ROW_MISSING, "the event is not in the order's history", *place)
            return
        self.history_rows += 1
        if raw != record.value:
            self._findings.add(ROW_DIFFERS, "the order's history holds another event than the topic", *place)


def _steps(event: Envelope[Any]) -> tuple[str, ...]:
    """What made the event's id: of a command of its own, or of one that the order's saga asked in passing."""
    payload = event.payload
    command = payload.command if isinstance(payload, OrderRejected) else _COMMANDS.get(event.event_type)
    return ("1",) if command is None else ("1", f"{command}:1")


def _wrong(order: Order, payload: Any) -> str | None:
    """Why an event cannot follow, or does not add up; None when all is well."""
    match payload:
        case OrderPlaced():
            if order.status != UNKNOWN:
                return f"it is {order.status} already"
            total = Decimal(0)
            for item in payload.items:
                total = EXACT_SUMS.add(total, EXACT_SUMS.multiply(item.price.amount, Decimal(item.quantity)))
            if total != payload.total.amount:
                return f"its total is {payload.total.amount}, its items add up to {total}"
        case OrderConfirmed() if order.status != PENDING:
            return f"it is {order.status}"
        case OrderCancelled() if order.status not in (PENDING, CONFIRMED) or order.shipped_at is not None:
            return "it is shipped" if order.shipped_at is not None else f"it is {order.status}"
        case OrderShipped() if order.status != CONFIRMED or order.shipped_at is not None:
            return "it is shipped already" if order.shipped_at is not None else f"it is {order.status}"
    if isinstance(payload, OrderConfirmed | OrderCancelled | OrderShipped) and payload.total != order.total:
        return f"its total is {payload.total}, that of the order {order.total}"
    return None


def _after(order: Order, event: Envelope[Any], version: int) -> Order:
    """The order after an event."""
    return _AFTER[type(event.payload)](replace(order, version=version), event)


def _placed(order: Order, event: Envelope[OrderPlaced]) -> Order:
    placed = event.payload
    return replace(
        order,
        customer_id=placed.customer_id,
        status=PENDING,
        items=placed.items,
        item_count=sum(item.quantity for item in placed.items),
        total=placed.total,
        country=placed.country,
        email=placed.email,
        created_at=event.timestamp,
        saga=None if placed.saga is msgspec.UNSET else placed.saga,
    )


def _confirmed(order: Order, event: Envelope[OrderConfirmed]) -> Order:
    return replace(order, status=CONFIRMED, confirmed_at=event.timestamp)


def _cancelled(order: Order, event: Envelope[OrderCancelled]) -> Order:
    return replace(order, status=CANCELLED, cancelled_at=event.timestamp, cancel_reason=event.payload.reason)


def _shipped(order: Order, event: Envelope[OrderShipped]) -> Order:
    return replace(order, shipped_at=event.timestamp)


def _rejected(order: Order, event: Envelope[OrderRejected]) -> Order:
    if order.status == UNKNOWN and event.payload.command == PlaceOrder.event_type:
        return replace(order, status=REJECTED, customer_id=event.payload.customer_id)
    return order


_AFTER: Final[Mapping[type, Callable[[Order, Envelope[Any]], Order]]] = {
    OrderPlaced: _placed,
    OrderConfirmed: _confirmed,
    OrderCancelled: _cancelled,
    OrderShipped: _shipped,
    OrderRejected: _rejected,
}


def _nothing(order_id: str) -> Order:
    """An order of which nothing has happened."""
    return Order(order_id, None, UNKNOWN, (), 0, None, None, None, None, None, None, None, 0)
