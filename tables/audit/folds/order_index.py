"""The fold of the order index: where each order is found by time and by correlation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from engine import AnyTable, Envelope, Record
from streams.events.orders import OrderPlaced, OrderRejected, PlaceOrder
from tables.audit.folds import RowLedger
from tables.audit.ledger import Entry, Ledger, Scratch
from tables.orders.index import ORDERS_BY_CORRELATION, ORDERS_BY_TIME, CorrelatedOrder, PlacedOrder
from tables.orders.index import Entry as Place

_PLACE: Final = Place()
_TAKEN: Final = frozenset(("already_placed", "already_rejected"))


class OrderIndexFold:
    """Makes the rows of `orders-by-time` and `orders-by-correlation`."""

    def __init__(self, scratch: Scratch) -> None:
        self._by_time: RowLedger = Ledger(Entry[Place], "orders-by-time", scratch)
        self._by_correlation: RowLedger = Ledger(Entry[Place], "orders-by-correlation", scratch)
        self.ledgers: Mapping[AnyTable, RowLedger] = {
            ORDERS_BY_TIME: self._by_time,
            ORDERS_BY_CORRELATION: self._by_correlation,
        }

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next event in."""
        order_id, offset = event.aggregate_id, record.offset
        if _begins(event.payload):
            _note(self._by_time, ORDERS_BY_TIME, PlacedOrder(event.timestamp, order_id), offset)
        correlation_id = event.metadata.correlation_id
        if correlation_id is not None:
            _note(self._by_correlation, ORDERS_BY_CORRELATION, CorrelatedOrder(correlation_id, order_id), offset)


def _begins(payload: Any) -> bool:
    """Whether an order is there from this event on, be it refused for good."""
    if isinstance(payload, OrderRejected):
        return payload.command == PlaceOrder.event_type and payload.reason not in _TAKEN
    return isinstance(payload, OrderPlaced)


def _note(ledger: RowLedger, table: AnyTable, key: Any, offset: int) -> None:
    raw = table.key.encode(key)
    if ledger.get(raw) is None:
        ledger.put(raw, Entry(_PLACE, offset), is_new=True)
