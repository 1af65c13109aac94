"""The web view of reconciliation: whether orders, stock, payments and analytics add up to the same."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from decimal import Decimal
from typing import Final, NamedTuple, TypedDict

from aiohttp import web

from domain.analytics import ZERO, Figures
from domain.sagas.state import COMPENSATED, COMPENSATING, COMPENSATION_FAILED, COMPLETED, RUNNING
from engine import Service
from engine.web import FRESHNESS, Hop, Operation, catch_up, catch_up_with_now, every_row, gather, json_response
from streams.events.money import EXACT_SUMS, AmountText, plain_text
from streams.topics import INVENTORY_EVENTS, ORDER_EVENTS, PAYMENT_EVENTS
from tables.analytics import ANALYTICS_TOTALS, NO_CURRENCY
from tables.inventory import INVENTORY_PATH, STOCK
from tables.reconciliation import (
    ORDER_SUMS,
    PAYMENT_SUMS,
    STOCK_KEY,
    STOCK_SUMS,
    OrderSums,
    PaymentSums,
    StockSums,
)
from tables.sagas import SAGA_COUNTS

SAGA_STATES: Final = (RUNNING, COMPLETED, COMPENSATING, COMPENSATED, COMPENSATION_FAILED)
UNDER_WAY: Final = (RUNNING, COMPENSATING)
LOOKS: Final = 3  # the shelf may be changed while it is read; a figure that is really wrong stays so
# What is compared has to be as new as each other: every one of these is waited for.
HOPS: Final = (
    Hop("reconcile-orders", ORDER_EVENTS),
    Hop("project-analytics", ORDER_EVENTS),
    Hop("reconcile-stock", INVENTORY_EVENTS),
    Hop("reconcile-payments", PAYMENT_EVENTS),
)

service = Service("reconciliation-views")


class Shelf(NamedTuple):
    """Pieces of all products, as their rows say."""

    on_hand: int
    reserved: int


class Books(NamedTuple):
    """All that is compared; amounts by currency, sagas by state."""

    orders: Mapping[str, OrderSums]
    payments: Mapping[str, PaymentSums]
    analytics: Mapping[str, Figures]
    stock: StockSums
    shelf: Shelf
    sagas: Mapping[str, int]


class Check(NamedTuple):
    """Two figures that have to be the same; pieces where there is no currency."""

    check: str
    currency: str | None
    left: Decimal
    right: Decimal

    @property
    def difference(self) -> Decimal:
        """Left minus right."""
        return EXACT_SUMS.subtract(self.left, self.right)


class CheckView(TypedDict):
    """Two figures that have to be the same; they are pieces where the currency is null."""

    check: str
    currency: str | None
    left: AmountText
    right: AmountText
    difference: AmountText
    holds: bool


class StockView(TypedDict):
    """Pieces of all products."""

    stocked: int
    shipped: int
    on_hand: int
    reserved: int


class PaymentsView(TypedDict):
    """Money that was taken and given back, in one currency."""

    currency: str
    charged: AmountText
    refunded: AmountText
    held: AmountText


class OrdersView(TypedDict):
    """Orders as they stand, in one currency."""

    currency: str
    placed_count: int
    confirmed_count: int
    cancelled_count: int
    placed: AmountText
    confirmed: AmountText
    cancelled: AmountText
    held_pieces: int
    shipped_pieces: int


class RevenueView(TypedDict):
    """What analytics shows, in one currency."""

    currency: str
    revenue: AmountText


class Reconciliation(TypedDict):
    """Whether everything adds up, and all that was compared; `sagas` are counts by state."""

    adds_up: bool
    is_settled: bool
    checks: list[CheckView]
    stock: StockView
    payments: list[PaymentsView]
    orders: list[OrdersView]
    analytics: list[RevenueView]
    sagas: dict[str, int]


@service.route("GET", "/analytics/reconciliation", Operation({200: Reconciliation}, FRESHNESS))
async def get_reconciliation(request: web.Request) -> web.StreamResponse:
    """`{adds_up, is_settled, checks, stock, payments, orders, analytics, sagas}`, as of now.

    `checks` are `[{check, currency, left, right, difference, holds}]`, of pieces where the currency is null. While
    orders are on their way (`is_settled` is false: a saga is under way) stock and money may be ahead of them. Nobody
    reserves or charges for orders without a saga. The stock of every product is read: this is not for polling.
    """
    await catch_up(request, INVENTORY_PATH, None)
    for _ in range(LOOKS):
        view = reconciliation_view(await _books(request))
        if view["adds_up"] or not view["is_settled"]:
            break
    return json_response(view)


async def _books(request: web.Request) -> Books:
    # First of all: when no saga was under way then, all they did is in the topics whose ends are taken next.
    sagas = await gather(request, SAGA_COUNTS)
    await catch_up_with_now(request, HOPS)
    orders, payments, stock, analytics, shelf = await asyncio.gather(
        gather(request, ORDER_SUMS),
        gather(request, PAYMENT_SUMS),
        gather(request, STOCK_SUMS),
        gather(request, ANALYTICS_TOTALS),
        _shelf(request),
    )
    counts = {state: sagas[state].count if state in sagas else 0 for state in SAGA_STATES}
    return Books(orders, payments, analytics, stock.get(STOCK_KEY, StockSums()), shelf, counts)


async def _shelf(request: web.Request) -> Shelf:
    on_hand = reserved = 0
    async for row in every_row(request, STOCK):
        on_hand += row.on_hand
        reserved += row.reserved
    return Shelf(on_hand, reserved)


def reconciliation_view(books: Books) -> Reconciliation:
    """The answer of `/analytics/reconciliation`."""
    checks = list(checks_of(books))
    return {
        "adds_up": not any(check.difference for check in checks),
        "is_settled": not any(books.sagas[state] for state in UNDER_WAY),
        "checks": [_check_view(check) for check in checks],
        "stock": {
            "stocked": books.stock.stocked,
            "shipped": books.stock.shipped,
            "on_hand": books.shelf.on_hand,
            "reserved": books.shelf.reserved,
        },
        "payments": [
            {
                "currency": currency,
                "charged": plain_text(sums.charged),
                "refunded": plain_text(sums.refunded),
                "held": plain_text(sums.held),
            }
            for currency, sums in sorted(books.payments.items())
        ],
        "orders": [
            {
                "currency": currency,
                "placed_count": sums.placed_count,
                "confirmed_count": sums.confirmed_count,
                "cancelled_count": sums.cancelled_count,
                "placed": plain_text(sums.placed),
                "confirmed": plain_text(sums.confirmed),
                "cancelled": plain_text(sums.cancelled),
                "held_pieces": sums.held,
                "shipped_pieces": sums.shipped,
            }
            for currency, sums in sorted(books.orders.items())
        ],
        "analytics": [
            {"currency": currency, "revenue": plain_text(figures.revenue)}
            for currency, figures in sorted(books.analytics.items())
            if currency != NO_CURRENCY
        ],
        "sagas": dict(books.sagas),
    }


def checks_of(books: Books) -> Iterator[Check]:
    """What has to be the same once no saga is under way."""
    held = sum(sums.held for sums in books.orders.values())
    shipped = sum(sums.shipped for sums in books.orders.values())
    stock, shelf = books.stock, books.shelf
    yield _pieces("stocked = on hand + shipped", stock.stocked, shelf.on_hand + stock.shipped)
    yield _pieces("reserved = pieces of confirmed orders", shelf.reserved, held)
    yield _pieces("shipped = pieces of shipped orders", stock.shipped, shipped)
    for currency in sorted({*books.orders, *books.payments, *books.analytics} - {NO_CURRENCY}):
        orders = books.orders.get(currency, OrderSums())
        payments = books.payments.get(currency, PaymentSums())
        revenue = books.analytics[currency].revenue if currency in books.analytics else ZERO
        yield Check("charged - refunded = confirmed orders", currency, payments.held, orders.charged)
        yield Check("confirmed orders = revenue in analytics", currency, orders.confirmed, revenue)


def _pieces(check: str, left: int, right: int) -> Check:
    return Check(check, None, Decimal(left), Decimal(right))


def _check_view(check: Check) -> CheckView:
    return {
        "check": check.check,
        "currency": check.currency,
        "left": plain_text(check.left),
        "right": plain_text(check.right),
        "difference": plain_text(check.difference),
        "holds": not check.difference,
    }
