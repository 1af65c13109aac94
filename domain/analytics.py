"""What an order event adds to the figures of its day, country and products."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final, Self

import msgspec

from streams.events.money import EXACT_SUMS
from streams.events.orders import OrderItem

ZERO: Final = Decimal(0)
UNKNOWN_COUNTRY: Final = "unknown"
OTHER_REASONS: Final = "other"
REASONS_MAX: Final = 100
"""The most reasons that a partition counts one by one; those that come later are counted as other ones."""
TEXT_CHARACTERS_MAX: Final = 128

_NUMBER = re.compile(r"\d+")
_add, _multiply, _minus = EXACT_SUMS.add, EXACT_SUMS.multiply, EXACT_SUMS.minus


class Figures(msgspec.Struct, frozen=True, gc=False):
    """Counts of order events, and the totals of their orders in one currency.

    An order is cancelled either before it was confirmed (`cancelled_revenue`) or afterwards (`refunded_count`, which is
    part of `cancelled_count`, and `refunded_revenue`). `rejected_count` is of refused `order.place` only.
    """

    placed_count: int = 0
    confirmed_count: int = 0
    cancelled_count: int = 0
    refunded_count: int = 0
    shipped_count: int = 0
    rejected_count: int = 0
    late_count: int = 0
    placed_revenue: Decimal = ZERO
    confirmed_revenue: Decimal = ZERO
    cancelled_revenue: Decimal = ZERO
    refunded_revenue: Decimal = ZERO

    def plus(self, other: Self) -> Self:
        """The sum of both."""
        return type(self)(
            self.placed_count + other.placed_count,
            self.confirmed_count + other.confirmed_count,
            self.cancelled_count + other.cancelled_count,
            self.refunded_count + other.refunded_count,
            self.shipped_count + other.shipped_count,
            self.rejected_count + other.rejected_count,
            self.late_count + other.late_count,
            _add(self.placed_revenue, other.placed_revenue),
            _add(self.confirmed_revenue, other.confirmed_revenue),
            _add(self.cancelled_revenue, other.cancelled_revenue),
            _add(self.refunded_revenue, other.refunded_revenue),
        )

    @property
    def revenue(self) -> Decimal:
        """What was confirmed and not cancelled since; below 0 on a day that took back more than it brought."""
        return EXACT_SUMS.subtract(self.confirmed_revenue, self.refunded_revenue)


class ProductFigures(msgspec.Struct, frozen=True, gc=False):
    """Orders with a product, its pieces in them, and what they cost.

    `confirmed_quantity` and `revenue` are of orders that are confirmed and not cancelled since.
    """

    order_count: int = 0
    quantity: int = 0
    placed_revenue: Decimal = ZERO
    confirmed_quantity: int = 0
    revenue: Decimal = ZERO

    def plus(self, other: Self) -> Self:
        """The sum of both."""
        return type(self)(
            self.order_count + other.order_count,
            self.quantity + other.quantity,
            _add(self.placed_revenue, other.placed_revenue),
            self.confirmed_quantity + other.confirmed_quantity,
            _add(self.revenue, other.revenue),
        )


class AnalyticsState(msgspec.Struct, frozen=True, gc=False):
    """What a partition has one of: the newest day it has seen, and its cancellations by reason ("" for none given)."""

    newest_day: str = ""
    cancel_reasons: dict[str, int] = {}

    def plus(self, other: Self) -> Self:
        """Both together."""
        reasons = dict(self.cancel_reasons)
        for reason, count in other.cancel_reasons.items():
            reasons[reason] = reasons.get(reason, 0) + count
        return type(self)(max(self.newest_day, other.newest_day), reasons)


SHIPPED: Final = Figures(shipped_count=1)
REJECTED: Final = Figures(rejected_count=1)


def day_of(timestamp: datetime) -> str:
    """The day in UTC, as `2026-11-23`."""
    return timestamp.astimezone(UTC).date().isoformat()


def country_of(country: str | None) -> str:
    """The country as it is counted; commands may name none, or anything."""
    return country[:TEXT_CHARACTERS_MAX] if country else UNKNOWN_COUNTRY


def placed(total: Decimal) -> Figures:
    """What a placed order adds."""
    return Figures(placed_count=1, placed_revenue=total)


def confirmed(total: Decimal) -> Figures:
    """What a confirmation adds."""
    return Figures(confirmed_count=1, confirmed_revenue=total)


def cancelled(total: Decimal, was_confirmed: bool) -> Figures:
    """What a cancellation adds; one after the confirmation takes revenue back, on the day of the cancellation."""
    if was_confirmed:
        return Figures(cancelled_count=1, refunded_count=1, refunded_revenue=total)
    return Figures(cancelled_count=1, cancelled_revenue=total)


def placed_products(items: Iterable[OrderItem]) -> dict[str, ProductFigures]:
    """What a placed order adds to each product in it; several lines with one product are one order of it."""
    return {
        product_id: ProductFigures(1, quantity, revenue) for product_id, (quantity, revenue) in _lines(items).items()
    }


def confirmed_products(items: Iterable[OrderItem]) -> dict[str, ProductFigures]:
    """What a confirmation adds to each product."""
    return {
        product_id: ProductFigures(confirmed_quantity=quantity, revenue=revenue)
        for product_id, (quantity, revenue) in _lines(items).items()
    }


def refunded_products(items: Iterable[OrderItem]) -> dict[str, ProductFigures]:
    """What the cancellation of a confirmed order takes from each product."""
    return {
        product_id: ProductFigures(confirmed_quantity=-quantity, revenue=_minus(revenue))
        for product_id, (quantity, revenue) in _lines(items).items()
    }


def _lines(items: Iterable[OrderItem]) -> dict[str, tuple[int, Decimal]]:
    lines: dict[str, tuple[int, Decimal]] = {}
    for item in items:
        quantity, revenue = lines.get(item.product_id, (0, ZERO))
        price = _multiply(item.price.amount, Decimal(item.quantity))
        lines[item.product_id] = quantity + item.quantity, _add(revenue, price)
    return lines


def with_reason(state: AnalyticsState, reason: str | None) -> AnalyticsState:
    """The state with one more cancellation for `reason`.

    Numbers in a reason are masked, so that all those which name an invoice or an order count together.
    """
    counted = _NUMBER.sub("#", (reason or "")[:TEXT_CHARACTERS_MAX])
    if counted not in state.cancel_reasons and len(state.cancel_reasons) >= REASONS_MAX:
        counted = OTHER_REASONS
    reasons: Mapping[str, int] = state.cancel_reasons
    return AnalyticsState(state.newest_day, {**reasons, counted: reasons.get(counted, 0) + 1})
