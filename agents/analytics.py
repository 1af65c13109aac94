"""The projection of analytics: each order event is added to the figures of its day, country and products.

What happened is counted on the day it happened, by business time: an order of last week that comes in today is an order
of last week. Such late events are counted as late on their day, too.
"""

from collections.abc import Mapping
from typing import Any, TypeVar

from msgspec.structs import replace

from domain.analytics import (
    REJECTED,
    SHIPPED,
    AnalyticsState,
    Figures,
    ProductFigures,
    cancelled,
    confirmed,
    confirmed_products,
    country_of,
    day_of,
    placed,
    placed_products,
    refunded_products,
    with_reason,
)
from domain.orders import Order
from engine import Envelope, Service, Table, UnitOfWork
from engine.web import Sums
from streams.events.orders import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OrderRejected,
    OrderShipped,
    PlaceOrder,
)
from streams.topics import ORDER_EVENTS
from tables.analytics import (
    ANALYTICS_COUNTRIES,
    ANALYTICS_DAYS,
    ANALYTICS_PRODUCTS,
    ANALYTICS_STATE,
    ANALYTICS_TOTALS,
    NO_CURRENCY,
    STATE_KEY,
)
from tables.orders import ORDERS

K = TypeVar("K")
S = TypeVar("S", bound=Sums)

TABLES = (ANALYTICS_TOTALS, ANALYTICS_DAYS, ANALYTICS_PRODUCTS, ANALYTICS_COUNTRIES, ANALYTICS_STATE)

service = Service("analytics", tables=TABLES)


projection = service.projection(
    "project-analytics", ORDER_EVENTS, *TABLES, help="Keep the figures of days, countries and products."
)


@projection.on(OrderPlaced)
def count_placed(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
    """Count an order on the day it was placed."""
    order = event.payload
    _count(work, event, order.total.currency, placed(order.total.amount), order.country)
    _count_products(work, order.total.currency, placed_products(order.items))


@projection.on(OrderConfirmed)
def count_confirmed(event: Envelope[OrderConfirmed], work: UnitOfWork) -> None:
    """Count revenue on the day the order was confirmed."""
    order, total = _order(event, work), event.payload.total
    _count(work, event, total.currency, confirmed(total.amount), order.country)
    _count_products(work, total.currency, confirmed_products(order.items))


@projection.on(OrderCancelled)
def count_cancelled(event: Envelope[OrderCancelled], work: UnitOfWork) -> None:
    """Count a cancellation on its day; that of a confirmed order takes its revenue back."""
    order, total = _order(event, work), event.payload.total
    was_confirmed = order.confirmed_at is not None
    _count(work, event, total.currency, cancelled(total.amount, was_confirmed), order.country)
    if was_confirmed:
        _count_products(work, total.currency, refunded_products(order.items))
    work.put(ANALYTICS_STATE, STATE_KEY, with_reason(_state(work), event.payload.reason))


@projection.on(OrderShipped)
def count_shipped(event: Envelope[OrderShipped], work: UnitOfWork) -> None:
    """Count an order on the day it was sent away."""
    _count(work, event, event.payload.total.currency, SHIPPED, _order(event, work).country)


@projection.on(OrderRejected)
def count_rejected(event: Envelope[OrderRejected], work: UnitOfWork) -> None:
    """Count an order that was refused; it has no currency and no country. Other refused commands are not counted."""
    if event.payload.command == PlaceOrder.event_type:
        _add_to_day(work, event, NO_CURRENCY, REJECTED)


def _order(event: Envelope[Any], work: UnitOfWork) -> Order:
    """The order, for what its event does not repeat: items and country, which never change.

    It is in this partition and at least as new as the event. What was ever confirmed was so before it was cancelled.
    """
    order = work.get(ORDERS, event.aggregate_id)
    if order is None:
        raise ValueError(f"there is no order {event.aggregate_id}, which {event.event_type} is about")
    return order


def _count(work: UnitOfWork, event: Envelope[Any], currency: str, more: Figures, country: str | None) -> None:
    _add_to_day(work, event, currency, more)
    _add(work, ANALYTICS_COUNTRIES, (country_of(country), currency), more)


def _add_to_day(work: UnitOfWork, event: Envelope[Any], currency: str, more: Figures) -> None:
    """Add to the event's day, and to the totals; an event of a day before the newest one is late."""
    day, state = day_of(event.timestamp), _state(work)
    if day > state.newest_day:
        work.put(ANALYTICS_STATE, STATE_KEY, replace(state, newest_day=day))
    elif day < state.newest_day:
        more = replace(more, late_count=1)
    _add(work, ANALYTICS_DAYS, (day, currency), more)
    _add(work, ANALYTICS_TOTALS, currency, more)


def _count_products(work: UnitOfWork, currency: str, products: Mapping[str, ProductFigures]) -> None:
    for product_id, more in products.items():
        _add(work, ANALYTICS_PRODUCTS, (product_id, currency), more)


def _add(work: UnitOfWork, table: Table[K, S], key: K, more: S) -> None:
    before = work.get(table, key)
    work.put(table, key, more if before is None else before.plus(more))


def _state(work: UnitOfWork) -> AnalyticsState:
    return work.get(ANALYTICS_STATE, STATE_KEY) or AnalyticsState()
