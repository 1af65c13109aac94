"""Statistics of each customer's orders."""

from datetime import datetime

import msgspec

from engine.declare.table import Table
from streams.events.money import Money


class Customer(msgspec.Struct, frozen=True, gc=False):
    """A customer's orders in figures.

    `order_count` orders were placed. `confirmed_count` of them are confirmed and not cancelled since, and `spent` is
    their sum, one amount per currency, the currency of the first order first. `cancelled_count` were cancelled, whether
    confirmed before or not. `last_order_at` is the newest `created_at`, business time.
    """

    customer_id: str
    order_count: int = 0
    confirmed_count: int = 0
    cancelled_count: int = 0
    spent: tuple[Money, ...] = ()
    last_order_at: datetime | None = None


CUSTOMERS: Table[str, Customer] = Table("customers", Customer, help="each customer's orders in figures")
