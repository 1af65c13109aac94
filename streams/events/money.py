"""Money: an exact decimal amount in one currency."""

from decimal import Context, Decimal, Inexact, InvalidOperation, Overflow
from typing import TYPE_CHECKING, Annotated, Final

import msgspec

if TYPE_CHECKING:
    Amount = Decimal
else:
    # msgspec would turn JSON numbers into a Decimal. A number type that no number satisfies makes it refuse them, at
    # no cost per record; a check in Python would cost a fifth of the whole decoding.
    Amount = Decimal | Annotated[int, msgspec.Meta(ge=1, le=0)] | Annotated[float, msgspec.Meta(ge=1.0, le=0.0)]

AmountText = Annotated[str, msgspec.Meta(extra_json_schema={"pattern": r"^-?[0-9]+(\.[0-9]+)?$"})]
"""An amount as `plain_text` writes it."""

EXACT_SUMS: Final = Context(prec=100, traps=[Inexact, InvalidOperation, Overflow])
"""Arithmetic for sums over orders: amounts of 28 digits each fit, and rounding would be an error."""

Currency = Annotated[str, msgspec.Meta(min_length=3, max_length=3)]


class Money(msgspec.Struct, frozen=True, gc=False):
    """An amount and its ISO 4217 currency code, on the wire `{"amount": "19.99", "currency": "USD"}`.

    The amount keeps its scale: "19.90" stays "19.90". JSON numbers are refused.
    """

    amount: Amount
    currency: Currency


def is_plain(amount: Decimal) -> bool:
    """Tell whether the amount is finite and written without an exponent, which is all that the wire allows."""
    return amount.is_finite() and "E" not in str(amount)


def plain_text(amount: Decimal) -> str:
    """An amount as on the wire, without an exponent; sums can be such that `str` would write one (`0E-7`)."""
    return format(amount, "f")
