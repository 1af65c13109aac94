"""What an order event adds to the figures of its day, country and products."""

import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from typing import Final

from streams.events.money import EXACT_SUMS
from streams.events.orders import OrderItem
from tables.analytics import ZERO, AnalyticsState, Figures, ProductFigures

UNKNOWN_COUNTRY: Final = "unknown"
OTHER_REASONS: Final = "other"
REASONS_MAX: Final = 100
"""The most reasons that a partition counts one by one; those that come later are counted as other ones."""
TEXT_CHARACTERS_MAX: Final = 128

SHIPPED: Final = Figures(shipped_count=1)
REJECTED: Final = Figures(rejected_count=1)

_NUMBER = re.compile(r"\d+")
_add, _multiply, _minus = EXACT_SUMS.add, EXACT_SUMS.multiply, EXACT_SUMS.minus


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
