"""Statistics of each customer's orders: the table and its views."""

from datetime import datetime
from typing import Final, NotRequired, TypedDict

import msgspec
from aiohttp import web

from engine import Partition, Service, Table, TimeText, format_timestamp
from engine.web import Hop, Operation, Path, Problem, by_key, json_response
from streams.events.money import AmountText, Money, plain_text
from streams.topics import CUSTOMER_ORDER_EVENTS
from tables.orders.queries import ORDER_PATH


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


CUSTOMERS_PATH: Final[Path] = (*ORDER_PATH, Hop("project-customers", CUSTOMER_ORDER_EVENTS))

service = Service("customer-views")


class MoneyView(TypedDict):
    """An amount in one currency."""

    amount: AmountText
    currency: str


class CustomerView(TypedDict):
    """A customer's orders in figures."""

    customer_id: str
    order_count: int
    confirmed_count: int
    cancelled_count: int
    total_spent: MoneyView | None
    last_order_at: TimeText | None
    spent: NotRequired[list[MoneyView]]


@service.route("GET", "/customers/{customer_id}", Operation({200: CustomerView}, problems=(404,)))
@by_key("customer_id", CUSTOMERS_PATH)
async def get_customer(request: web.Request, task: Partition) -> web.StreamResponse:
    """A customer's orders in figures; with `?after=TOKEN` never older than it. 404 for one who has placed none.

    `{customer_id, order_count, confirmed_count, cancelled_count, total_spent, last_order_at}`. A confirmed order that
    is cancelled is no longer in `confirmed_count` and `total_spent`. For orders in several currencies `total_spent` is
    in the currency of the first one, and `spent` has the amount of each.
    """
    customer_id = request.match_info["customer_id"]
    customer = task.read(CUSTOMERS, customer_id)
    if customer is None:
        raise Problem(404, f"there is no customer {customer_id}")
    return json_response(customer_view(customer))


def customer_view(customer: Customer) -> CustomerView:
    """A customer as the web view shows it."""
    spent = [MoneyView(amount=plain_text(money.amount), currency=money.currency) for money in customer.spent]
    view: CustomerView = {
        "customer_id": customer.customer_id,
        "order_count": customer.order_count,
        "confirmed_count": customer.confirmed_count,
        "cancelled_count": customer.cancelled_count,
        "total_spent": spent[0] if spent else None,
        "last_order_at": None if customer.last_order_at is None else format_timestamp(customer.last_order_at),
    }
    if len(spent) > 1:
        view["spent"] = spent
    return view
