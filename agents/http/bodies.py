"""Bodies of HTTP commands as pydantic models, and what becomes of a body that cannot be used."""

import re
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
    WithJsonSchema,
    model_validator,
)
from pydantic_core import PydanticCustomError

from domain.prices import price_problem
from engine.web import SETTINGS, Body, Id, Time
from streams.events.money import Money, is_plain
from streams.events.orders import OrderItem, PlaceOrder
from streams.settings import shop_settings

QUANTITY_MAX = 1_000_000_000
ITEMS_MAX = 10_000
_AMOUNT = re.compile(r"[0-9]{1,28}(\.[0-9]{1,28})?")


def _amount(value: Any) -> Decimal:
    """A positive decimal string of at most 28 digits, as the domain computes with."""
    if not isinstance(value, str) or not _AMOUNT.fullmatch(value):
        raise PydanticCustomError("amount", 'an amount is a decimal string such as "19.99"')
    amount = Decimal(value)
    if amount <= 0:
        raise PydanticCustomError("amount", "an amount must be greater than 0")
    if not is_plain(amount) or len(amount.as_tuple().digits) > 28:
        raise PydanticCustomError("amount", "an amount has at most 28 digits and is at least 0.000001")
    return amount


Amount = Annotated[
    Decimal, BeforeValidator(_amount), WithJsonSchema({"type": "string", "pattern": f"^{_AMOUNT.pattern}$"})
]


def _price_decimals(info: ValidationInfo) -> int | None:
    return shop_settings(info.context[SETTINGS]).price_decimals if info.context else None


class PriceBody(Body):
    """An amount in a currency (ISO 4217)."""

    amount: Amount
    currency: Annotated[str, Field(pattern=r"^[A-Z]{3}$")]

    @model_validator(mode="after")
    def _can_be_charged(self, info: ValidationInfo) -> Self:
        problem = price_problem(Money(self.amount, self.currency), _price_decimals(info))
        if problem is not None:
            raise PydanticCustomError(problem.reason, "{detail}", {"detail": problem.detail})
        return self


class ItemBody(Body):
    """One line of an order; `price` is for one piece."""

    product_id: Id
    quantity: Annotated[int, Field(ge=1, le=QUANTITY_MAX)]
    price: PriceBody


def _one_currency(items: list[ItemBody]) -> list[ItemBody]:
    if len({item.price.currency for item in items}) > 1:
        raise PydanticCustomError("currencies", "all prices must be in one currency")
    return items


class PlaceOrderBody(Body):
    """What `POST /orders` takes; `occurred_at` is business time, by default now.

    Programs that derive their command ids, as an import does, give them: a command takes effect once.
    """

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "customer_id": "customer-456",
                    "items": [
                        {"product_id": "SKU-1", "quantity": 2, "price": {"amount": "19.99", "currency": "USD"}},
                    ],
                    "country": "France",
                }
            ]
        }
    )

    order_id: Id | None = None
    customer_id: Id
    items: Annotated[list[ItemBody], Field(min_length=1, max_length=ITEMS_MAX), AfterValidator(_one_currency)]
    occurred_at: Annotated[Time | None, Field(strict=False)] = None
    country: Annotated[str, Field(max_length=128)] | None = None
    email: Annotated[str, Field(max_length=320)] | None = None
    command_id: Id | None = None

    def command(self, order_id: str) -> PlaceOrder:
        """The command that asks for this order under `order_id`."""
        items = tuple(
            OrderItem(item.product_id, item.quantity, Money(item.price.amount, item.price.currency))
            for item in self.items
        )
        return PlaceOrder(order_id, self.customer_id, items, country=self.country, email=self.email)


class ChangeOrderBody(Body):
    """What confirming an order takes, all of it optional."""

    occurred_at: Annotated[Time | None, Field(strict=False)] = None
    command_id: Id | None = None


class CancelOrderBody(ChangeOrderBody):
    """What cancelling an order takes, all of it optional."""

    reason: Annotated[str, Field(max_length=1000)] | None = None
