"""The folds of `customer-order-events`: each customer's list of orders, and each customer in figures."""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

import msgspec

from engine import AnyTable, Envelope, Record
from streams.events.money import EXACT_SUMS, Money
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderPlaced
from streams.topics import CUSTOMER_ORDER_EVENTS
from tables.audit.findings import EVENT_REPEATED, VERSION_GAP, Findings
from tables.audit.folds import RowLedger, Subject
from tables.audit.ledger import Entry, Ledger, Scratch
from tables.customers import CUSTOMERS, Customer
from tables.orders.customer_orders import CUSTOMER_ORDERS, CustomerOrder, CustomerOrderKey


class SummaryCheck:
    """Checks the summaries as such: keys, ids, and that none of an order is missing or there twice."""

    def __init__(self, findings: Findings, scratch: Scratch) -> None:
        self._versions: Ledger[_Version] = Ledger(_Version, "summaries", scratch)
        self._findings = findings
        self._subject = Subject(CUSTOMER_ORDER_EVENTS.name, "order", findings)

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next summary in."""
        self._subject.check_place(record, event, event.payload.customer_id)
        self._subject.check_id(record, event, ("summary",))
        key, found = event.aggregate_id.encode(), int(event.aggregate_version or 0)
        before = self._versions.get(key)
        topic, order_id = CUSTOMER_ORDER_EVENTS.name, event.aggregate_id
        if before is not None and found <= before.version:
            detail = f"summary {found} of order {order_id} came before"
            self._findings.add(EVENT_REPEATED, detail, topic, record.offset)
            return
        if before is not None and found > before.version + 1:
            detail = f"summary {before.version + 1} of order {order_id} is missing before summary {found}"
            self._findings.add(VERSION_GAP, detail, topic, record.offset)
        self._versions.put(key, _Version(found), is_new=before is None)


class _Version(msgspec.Struct):
    version: int


class CustomerOrderFold:
    """Makes the rows of `customer-orders`."""

    def __init__(self, scratch: Scratch) -> None:
        self._orders: Ledger[Entry[CustomerOrder]] = Ledger(Entry[CustomerOrder], "customer-orders", scratch)
        self.ledgers: Mapping[AnyTable, RowLedger] = {CUSTOMER_ORDERS: self._orders}

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next summary in: the newest is the row."""
        order = event.payload
        key = CUSTOMER_ORDERS.key.encode(CustomerOrderKey(order.customer_id, order.created_at, order.order_id))
        row = CustomerOrder(
            order_id=order.order_id,
            customer_id=order.customer_id,
            status=order.status,
            item_count=order.item_count,
            total=order.total,
            created_at=order.created_at,
            confirmed_at=order.confirmed_at,
            cancelled_at=order.cancelled_at,
            version=int(event.aggregate_version or 0),
        )
        self._orders.put(key, Entry(row, record.offset), is_new=self._orders.get(key) is None)


class CustomerFold:
    """Makes the rows of `customers`."""

    def __init__(self, scratch: Scratch) -> None:
        self._customers: Ledger[Entry[Customer]] = Ledger(Entry[Customer], "customers", scratch)
        self.ledgers: Mapping[AnyTable, RowLedger] = {CUSTOMERS: self._customers}

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next summary in."""
        order = event.payload
        key = order.customer_id.encode()
        entry = self._customers.get(key)
        before = entry.row if entry is not None else Customer(order.customer_id)
        after = _after(before, order)
        if after is not before:
            self._customers.put(key, Entry(after, record.offset), is_new=entry is None)


def _after(customer: Customer, order: Any) -> Customer:
    """The customer after a change of an order."""
    placed, confirmed, cancelled, last = (
        customer.order_count,
        customer.confirmed_count,
        customer.cancelled_count,
        customer.last_order_at,
    )
    more: Decimal | None = None
    match order.change:
        case OrderPlaced.event_type:
            placed += 1
            last = order.created_at if last is None else max(last, order.created_at)
            more = Decimal(0)
        case OrderConfirmed.event_type:
            confirmed += 1
            more = order.total.amount
        case OrderCancelled.event_type:
            cancelled += 1
            if order.confirmed_at is not None:
                confirmed -= 1
                more = order.total.amount.copy_negate()
        case _:
            return customer
    spent = customer.spent if more is None else _spent(customer.spent, more, order.total.currency)
    return Customer(customer.customer_id, placed, confirmed, cancelled, spent, last)


def _spent(spent: tuple[Money, ...], more: Decimal, currency: str) -> tuple[Money, ...]:
    """The sums after an amount came to that of its currency."""
    if not any(money.currency == currency for money in spent):
        return (*spent, Money(more, currency))
    return tuple(
        [
            Money(EXACT_SUMS.add(money.amount, more), currency) if money.currency == currency else money
            for money in spent
        ]
    )
