"""The projection of reconciliation: adds up what the events of orders, stock and payments say, each by itself.

It handles every event there is, so that a handler does one addition to one row of its partition.
"""

from decimal import Decimal
from typing import Any

from domain.orders import Order
from engine import Envelope, Service, UnitOfWork
from streams.events.inventory import INVENTORY_TYPES, StockAdded, StockShipped
from streams.events.money import Money
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderPlaced, OrderShipped
from streams.events.payments import PAYMENT_TYPES, PaymentReceived, PaymentRefunded
from streams.topics import INVENTORY_EVENTS, ORDER_EVENTS, PAYMENT_EVENTS
from tables.orders import ORDERS
from tables.reconciliation import ORDER_SUMS, PAYMENT_SUMS, STOCK_KEY, STOCK_SUMS, OrderSums, PaymentSums, StockSums

service = Service(
    "reconciliation", tables=(ORDER_SUMS, STOCK_SUMS, PAYMENT_SUMS), types=(*INVENTORY_TYPES, *PAYMENT_TYPES)
)


orders = service.projection("reconcile-orders", ORDER_EVENTS, ORDER_SUMS, help="Keep the sums of orders.")
stock = service.projection("reconcile-stock", INVENTORY_EVENTS, STOCK_SUMS, help="Keep the sums of pieces.")
payments = service.projection("reconcile-payments", PAYMENT_EVENTS, PAYMENT_SUMS, help="Keep the sums of money.")


@orders.on(OrderPlaced)
def add_placed(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
    """Count an order."""
    total = event.payload.total
    _add_order(work, total, OrderSums(placed_count=1, placed=total.amount))


@orders.on(OrderConfirmed)
def add_confirmed(event: Envelope[OrderConfirmed], work: UnitOfWork) -> None:
    """Count a confirmed order, and the pieces that are held for it."""
    total = event.payload.total
    _add_order(work, total, _confirmed(_order(event, work), 1, total.amount))


@orders.on(OrderCancelled)
def add_cancelled(event: Envelope[OrderCancelled], work: UnitOfWork) -> None:
    """Count a cancelled order, which is then no confirmed one any more."""
    order, total = _order(event, work), event.payload.total
    more = OrderSums(cancelled_count=1, cancelled=total.amount)
    if order.confirmed_at is not None:
        more = more.plus(_confirmed(order, -1, total.amount.copy_negate()))
    _add_order(work, total, more)


@orders.on(OrderShipped)
def add_shipped_order(event: Envelope[OrderShipped], work: UnitOfWork) -> None:
    """Count pieces that an order no longer holds: they are sent away."""
    order = _order(event, work)
    if order.saga is not None:
        _add_order(work, event.payload.total, OrderSums(held=-order.item_count, shipped=order.item_count))


@stock.on(StockAdded)
def add_stocked(event: Envelope[StockAdded], work: UnitOfWork) -> None:
    """Count pieces that came onto the shelf, or that a stocktake took off it."""
    _add_pieces(work, StockSums(stocked=event.payload.quantity))


@stock.on(StockShipped)
def add_shipped(event: Envelope[StockShipped], work: UnitOfWork) -> None:
    """Count pieces that were sent away."""
    _add_pieces(work, StockSums(shipped=event.payload.quantity))


@payments.on(PaymentReceived)
def add_charged(event: Envelope[PaymentReceived], work: UnitOfWork) -> None:
    """Count money that was taken."""
    _add_money(work, event.payload.amount, PaymentSums(charged=event.payload.amount.amount))


@payments.on(PaymentRefunded)
def add_refunded(event: Envelope[PaymentRefunded], work: UnitOfWork) -> None:
    """Count money that was given back."""
    _add_money(work, event.payload.amount, PaymentSums(refunded=event.payload.amount.amount))


def _confirmed(order: Order, count: int, amount: Decimal) -> OrderSums:
    """What a confirmed order adds; a count of -1 and an amount below 0 take it away again."""
    if order.saga is None:
        return OrderSums(confirmed_count=count, confirmed=amount)
    return OrderSums(confirmed_count=count, held=count * order.item_count, confirmed=amount, charged=amount)


def _order(event: Envelope[Any], work: UnitOfWork) -> Order:
    """The order, for what its event does not repeat. It is in this partition and at least as new as the event."""
    order = work.get(ORDERS, event.aggregate_id)
    if order is None:
        raise ValueError(f"there is no order {event.aggregate_id}, which {event.event_type} is about")
    return order


def _add_order(work: UnitOfWork, total: Money, more: OrderSums) -> None:
    before = work.get(ORDER_SUMS, total.currency)
    work.put(ORDER_SUMS, total.currency, more if before is None else before.plus(more))


def _add_pieces(work: UnitOfWork, more: StockSums) -> None:
    before = work.get(STOCK_SUMS, STOCK_KEY)
    work.put(STOCK_SUMS, STOCK_KEY, more if before is None else before.plus(more))


def _add_money(work: UnitOfWork, amount: Money, more: PaymentSums) -> None:
    before = work.get(PAYMENT_SUMS, amount.currency)
    work.put(PAYMENT_SUMS, amount.currency, more if before is None else before.plus(more))
