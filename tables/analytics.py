"""Analytics: what happened to orders, per day, product and country.

Order events are keyed by order, so each partition sums up its own orders only. Answers add the partitions up.
"""

from decimal import Decimal
from typing import Final, Self

import msgspec

from engine.declare.table import KeyCodec, Table
from streams.events.money import EXACT_SUMS

ZERO: Final = Decimal(0)
NO_CURRENCY: Final = "---"
"""What stands for the currency of orders that were refused: they have none."""
STATE_KEY: Final = "state"

_add = EXACT_SUMS.add


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


def _encode(key: tuple[str, str]) -> bytes:
    return (key[0] + key[1]).encode()


def _decode(raw: bytes) -> tuple[str, str]:
    return raw[:-3].decode(), raw[-3:].decode()


def _decode_day(raw: bytes) -> tuple[str, str]:
    return raw[:10].decode(), raw[10:].decode()


# (what, currency): a currency has three bytes, a day ten characters, so neither needs a separator.
_BY_CURRENCY: KeyCodec[tuple[str, str]] = KeyCodec(_encode, _decode)
_BY_DAY: KeyCodec[tuple[str, str]] = KeyCodec(_encode, _decode_day)

ANALYTICS_TOTALS: Table[str, Figures] = Table("analytics-totals", Figures, help="orders in figures, by currency")
ANALYTICS_DAYS: Table[tuple[str, str], Figures] = Table(
    "analytics-days", Figures, _BY_DAY, help="orders in figures, by day (business time, UTC) and currency"
)
ANALYTICS_PRODUCTS: Table[tuple[str, str], ProductFigures] = Table(
    "analytics-products", ProductFigures, _BY_CURRENCY, help="orders of each product, by product and currency"
)
ANALYTICS_COUNTRIES: Table[tuple[str, str], Figures] = Table(
    "analytics-countries", Figures, _BY_CURRENCY, help="orders in figures, by country and currency"
)
ANALYTICS_STATE: Table[str, AnalyticsState] = Table(
    "analytics-state", AnalyticsState, help="each partition's newest day, and its cancellations by reason"
)
