"""Reconciliation: what the events of orders, stock and payments add up to, to be held against each other.

Events are keyed by order or product, so each partition sums up its own part only. Answers add the partitions up.
"""

from decimal import Decimal
from typing import Final, Self

import msgspec

from domain.analytics import ZERO
from engine import Table
from streams.events.money import EXACT_SUMS

STOCK_KEY: Final = "stock"

_add = EXACT_SUMS.add


class OrderSums(msgspec.Struct, frozen=True, gc=False):
    """Orders in one currency as they stand: a confirmed one that is cancelled no longer counts as confirmed.

    `charged` is the part of `confirmed` whose orders have a saga: nobody reserves or charges for others. `held` and
    `shipped` are the pieces of those: still on the shelf, and sent away.
    """

    placed_count: int = 0
    confirmed_count: int = 0
    cancelled_count: int = 0
    held: int = 0
    shipped: int = 0
    placed: Decimal = ZERO
    confirmed: Decimal = ZERO
    cancelled: Decimal = ZERO
    charged: Decimal = ZERO

    def plus(self, other: Self) -> Self:
        """The sum of both."""
        return type(self)(
            self.placed_count + other.placed_count,
            self.confirmed_count + other.confirmed_count,
            self.cancelled_count + other.cancelled_count,
            self.held + other.held,
            self.shipped + other.shipped,
            _add(self.placed, other.placed),
            _add(self.confirmed, other.confirmed),
            _add(self.cancelled, other.cancelled),
            _add(self.charged, other.charged),
        )


class StockSums(msgspec.Struct, frozen=True, gc=False):
    """Pieces of all products: put on the shelf (less what a stocktake took off it), and sent away."""

    stocked: int = 0
    shipped: int = 0

    def plus(self, other: Self) -> Self:
        """The sum of both."""
        return type(self)(self.stocked + other.stocked, self.shipped + other.shipped)


class PaymentSums(msgspec.Struct, frozen=True, gc=False):
    """Money taken and money given back, in one currency."""

    charged: Decimal = ZERO
    refunded: Decimal = ZERO

    def plus(self, other: Self) -> Self:
        """The sum of both."""
        return type(self)(_add(self.charged, other.charged), _add(self.refunded, other.refunded))

    @property
    def held(self) -> Decimal:
        """What was taken and not given back."""
        return EXACT_SUMS.subtract(self.charged, self.refunded)


ORDER_SUMS: Table[str, OrderSums] = Table(
    "reconciliation-orders", OrderSums, help="orders as they stand, by currency, of each partition"
)
STOCK_SUMS: Table[str, StockSums] = Table(
    "reconciliation-stock", StockSums, help="pieces that came and went, of each partition"
)
PAYMENT_SUMS: Table[str, PaymentSums] = Table(
    "reconciliation-payments", PaymentSums, help="money that came and went, by currency, of each partition"
)
