"""The fold of analytics and of the sums of reconciliation: what the events of orders, stock and payments add up to."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from datetime import UTC
from decimal import Decimal
from typing import Any, Final

from msgspec.structs import replace

from domain.analytics import AnalyticsState, Figures, ProductFigures
from domain.orders import Order
from engine import AnyTable, Envelope, Record
from streams.events.inventory import StockAdded, StockShipped
from streams.events.money import EXACT_SUMS
from streams.events.orders import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OrderRejected,
    OrderShipped,
    PlaceOrder,
)
from streams.events.payments import PaymentReceived, PaymentRefunded
from tables.analytics import (
    ANALYTICS_COUNTRIES,
    ANALYTICS_DAYS,
    ANALYTICS_PRODUCTS,
    ANALYTICS_STATE,
    ANALYTICS_TOTALS,
    NO_CURRENCY,
    STATE_KEY,
)
from tables.audit.folds import RowLedger
from tables.audit.folds.orders import OrderFold
from tables.audit.ledger import Entry, Ledger, Scratch
from tables.reconciliation import ORDER_SUMS, PAYMENT_SUMS, STOCK_KEY, STOCK_SUMS, OrderSums, PaymentSums, StockSums

TEXT_CHARACTERS_MAX: Final = 128
REASONS_MAX: Final = 100


class _Sums:
    """Ledgers of rows that are sums."""

    def __init__(self, scratch: Scratch, *tables: AnyTable) -> None:
        self.ledgers: Mapping[AnyTable, RowLedger] = {table: _ledger(table, scratch) for table in tables}

    def row(self, table: AnyTable, key: Any) -> Any:
        """The sum so far, None where there is none."""
        entry = self.ledgers[table].get(table.key.encode(key))
        return None if entry is None else entry.row

    def set(self, table: AnyTable, key: Any, row: Any, offset: int) -> None:
        """Keep a sum."""
        raw = table.key.encode(key)
        self.ledgers[table].put(raw, Entry(row, offset), is_new=self.ledgers[table].get(raw) is None)

    def add(self, table: AnyTable, key: Any, more: Any, offset: int) -> None:
        """Add to a sum."""
        raw, ledger = table.key.encode(key), self.ledgers[table]
        entry = ledger.get(raw)
        if entry is None:
            ledger.put(raw, Entry(more, offset), is_new=True)
        else:
            entry.row, entry.offset = entry.row.plus(more), offset
            ledger.put(raw, entry, is_new=False)


def _ledger(table: AnyTable, scratch: Scratch) -> RowLedger:
    entry: Any = Entry.__class_getitem__(table.row)  # type: ignore[attr-defined]
    return Ledger(entry, table.name, scratch)


class AnalyticsFold(_Sums):
    """Makes the rows of analytics; of orders it asks what their fold has made of the events so far."""

    def __init__(self, orders: OrderFold, scratch: Scratch) -> None:
        super().__init__(
            scratch, ANALYTICS_TOTALS, ANALYTICS_DAYS, ANALYTICS_PRODUCTS, ANALYTICS_COUNTRIES, ANALYTICS_STATE
        )
        self._orders = orders

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next event in."""
        payload, offset = event.payload, record.offset
        if isinstance(payload, OrderRejected):
            if payload.command == PlaceOrder.event_type:
                self._add_day(event, NO_CURRENCY, Figures(rejected_count=1), offset)
            return
        entry = self._orders.entries.get(event.aggregate_id.encode())
        if entry is None:
            return
        order, total, currency = entry.row, payload.total.amount, payload.total.currency
        if isinstance(payload, OrderPlaced):
            figures, factor = Figures(placed_count=1, placed_revenue=total), None
            self._add_products(order, currency, None, offset)
        elif isinstance(payload, OrderConfirmed):
            figures, factor = Figures(confirmed_count=1, confirmed_revenue=total), 1
        elif isinstance(payload, OrderShipped):
            figures, factor = Figures(shipped_count=1), None
        elif order.confirmed_at is None:
            figures, factor = Figures(cancelled_count=1, cancelled_revenue=total), None
        else:
            figures, factor = Figures(cancelled_count=1, refunded_count=1, refunded_revenue=total), -1
        self._add_day(event, currency, figures, offset, order)
        if factor is not None:
            self._add_products(order, currency, factor, offset)
        if isinstance(payload, OrderCancelled):
            self._add_reason(payload.reason, offset)

    def _add_day(
        self, event: Envelope[Any], currency: str, more: Figures, offset: int, order: Order | None = None
    ) -> None:
        """Add to the totals, to the event's day, and to the order's country."""
        if order is not None:
            country = order.country[:TEXT_CHARACTERS_MAX] if order.country else "unknown"
            self.add(ANALYTICS_COUNTRIES, (country, currency), more, offset)
        day = event.timestamp.astimezone(UTC).date().isoformat()
        state = self.row(ANALYTICS_STATE, STATE_KEY) or AnalyticsState()
        if day > state.newest_day:
            self.set(ANALYTICS_STATE, STATE_KEY, replace(state, newest_day=day), offset)
        elif day < state.newest_day:
            more = replace(more, late_count=1)
        self.add(ANALYTICS_DAYS, (day, currency), more, offset)
        self.add(ANALYTICS_TOTALS, currency, more, offset)

    def _add_products(self, order: Order, currency: str, factor: int | None, offset: int) -> None:
        """Add an order's lines to its products: as placed (None), confirmed (1) or taken back (-1)."""
        pieces: defaultdict[str, int] = defaultdict(int)
        money: defaultdict[str, Decimal] = defaultdict(Decimal)
        for item in order.items:
            pieces[item.product_id] += item.quantity
            price = EXACT_SUMS.multiply(item.price.amount, Decimal(item.quantity))
            money[item.product_id] = EXACT_SUMS.add(money[item.product_id], price)
        for product_id, quantity in pieces.items():
            revenue = money[product_id]
            if factor is None:
                more = ProductFigures(order_count=1, quantity=quantity, placed_revenue=revenue)
            else:
                more = ProductFigures(
                    confirmed_quantity=factor * quantity, revenue=EXACT_SUMS.multiply(revenue, Decimal(factor))
                )
            self.add(ANALYTICS_PRODUCTS, (product_id, currency), more, offset)

    def _add_reason(self, reason: str | None, offset: int) -> None:
        """Count a cancellation by its reason, in which numbers are masked."""
        state = self.row(ANALYTICS_STATE, STATE_KEY) or AnalyticsState()
        counted = re.sub(r"\d+", "#", (reason or "")[:TEXT_CHARACTERS_MAX])
        if counted not in state.cancel_reasons and len(state.cancel_reasons) >= REASONS_MAX:
            counted = "other"
        reasons = {**state.cancel_reasons, counted: state.cancel_reasons.get(counted, 0) + 1}
        self.set(ANALYTICS_STATE, STATE_KEY, AnalyticsState(state.newest_day, reasons), offset)


class OrderSumsFold(_Sums):
    """Makes the rows of `reconciliation-orders`."""

    def __init__(self, orders: OrderFold, scratch: Scratch) -> None:
        super().__init__(scratch, ORDER_SUMS)
        self._orders = orders

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next event in."""
        payload = event.payload
        entry = self._orders.entries.get(event.aggregate_id.encode())
        if entry is None or isinstance(payload, OrderRejected):
            return
        order, amount = entry.row, payload.total.amount
        has_saga = order.saga is not None
        pieces = order.item_count if has_saga else 0
        charged = amount if has_saga else Decimal(0)
        match payload:
            case OrderPlaced():
                more = OrderSums(placed_count=1, placed=amount)
            case OrderConfirmed():
                more = OrderSums(confirmed_count=1, confirmed=amount, held=pieces, charged=charged)
            case OrderShipped():
                more = OrderSums(held=-pieces, shipped=pieces)
                if not has_saga:
                    return
            case OrderCancelled() if order.confirmed_at is not None:
                more = OrderSums(cancelled_count=1, cancelled=amount, confirmed_count=-1, held=-pieces,
                                 confirmed=amount.copy_negate(), charged=charged.copy_negate())  # fmt: skip
            case _:
                more = OrderSums(cancelled_count=1, cancelled=amount)
        self.add(ORDER_SUMS, payload.total.currency, more, record.offset)


class StockSumsFold(_Sums):
    """Makes the row of `reconciliation-stock`."""

    def __init__(self, scratch: Scratch) -> None:
        super().__init__(scratch, STOCK_SUMS)

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next event in."""
        match event.payload:
            case StockAdded(quantity=pieces):
                self.add(STOCK_SUMS, STOCK_KEY, StockSums(stocked=pieces), record.offset)
            case StockShipped(quantity=pieces):
                self.add(STOCK_SUMS, STOCK_KEY, StockSums(shipped=pieces), record.offset)


class PaymentSumsFold(_Sums):
    """Makes the rows of `reconciliation-payments`."""

    def __init__(self, scratch: Scratch) -> None:
        super().__init__(scratch, PAYMENT_SUMS)

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next event in."""
        match event.payload:
            case PaymentReceived(amount=money):
                self.add(PAYMENT_SUMS, money.currency, PaymentSums(charged=money.amount), record.offset)
            case PaymentRefunded(amount=money):
                self.add(PAYMENT_SUMS, money.currency, PaymentSums(refunded=money.amount), record.offset)
