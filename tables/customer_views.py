"""The web view of a customer's statistics."""

from typing import Any, Final

from aiohttp import web

from streams.engine.partition_task import PartitionTask
from streams.envelope import format_timestamp
from streams.events.money import plain_text
from streams.freshness import Hop, Path, by_key
from streams.service import Service
from streams.topics import CUSTOMER_ORDER_EVENTS
from streams.web import Problem, json_response
from tables.customers import CUSTOMERS, Customer
from tables.queries import ORDER_PATH

CUSTOMERS_PATH: Final[Path] = (*ORDER_PATH, Hop("project-customers", CUSTOMER_ORDER_EVENTS))

service = Service("customer-views")


@service.route("GET", "/customers/{customer_id}")
@by_key("customer_id", CUSTOMERS_PATH)
async def get_customer(request: web.Request, task: PartitionTask) -> web.StreamResponse:
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


def customer_view(customer: Customer) -> dict[str, Any]:
    """A customer as the web view shows it."""
    spent = [{"amount": plain_text(money.amount), "currency": money.currency} for money in customer.spent]
    view = {
        "customer_id": customer.customer_id,
        "order_count": customer.order_count,
        "confirmed_count": customer.confirmed_count,
        "cancelled_count": customer.cancelled_count,
        "total_spent": spent[0] if spent else None,
        "last_order_at": None if customer.last_order_at is None else format_timestamp(customer.last_order_at),
    }
    return view if len(spent) < 2 else view | {"spent": spent}
