"""Prices: which currencies an order can be placed in, and how many decimals an amount of money can have."""

from collections.abc import Mapping
from decimal import Decimal, DecimalException
from typing import Final, NamedTuple

import iso4217

from streams.events.money import EXACT_SUMS, Money

DECIMALS: Final[Mapping[str, int]] = {
    currency.code: currency.exponent for currency in iso4217.Currency if currency.exponent is not None
}
"""Decimals of each currency's smallest unit (ISO 4217). Metals, test codes and "no currency" have none."""

_UNITS: Final = {decimals: Decimal(1).scaleb(-decimals) for decimals in range(29)}


class PriceProblem(NamedTuple):
    """Why an amount cannot be charged: a stable snake_case code, and a sentence for people."""

    reason: str
    detail: str


def price_problem(price: Money, decimals: int | None = None) -> PriceProblem | None:
    """Return why a price cannot be charged, None when it can.

    `decimals` is how many an amount may have where the currency's own are fewer (ORDERS_PRICE_DECIMALS).
    """
    known = DECIMALS.get(price.currency)
    if known is None:
        return PriceProblem("invalid_currency", f"{price.currency!r} is not a currency of ISO 4217")
    allowed = known if decimals is None else max(known, decimals)
    try:
        if price.amount <= 0:
            return PriceProblem("invalid_price", "a price must be greater than 0")
        if EXACT_SUMS.remainder(price.amount, _UNITS[allowed]):
            detail = f"a price in {price.currency} has at most {allowed} decimals (ORDERS_PRICE_DECIMALS allows more)"
            return PriceProblem("invalid_price", detail)
    except DecimalException:
        return PriceProblem("amount_out_of_range", "the amount is not a number of at most 28 digits")
    return None
