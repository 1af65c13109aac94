"""The projection of each customer's statistics."""

from decimal import Decimal

from msgspec.structs import replace

from engine import Envelope, Service, UnitOfWork
from streams.events.money import EXACT_SUMS, Money
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderPlaced, OrderSummaryChanged
from streams.topics import CUSTOMER_ORDER_EVENTS
from tables.customers import CUSTOMERS, Customer

service = Service("customers", tables=(CUSTOMERS,))


projection = service.projection(
    "project-customers", CUSTOMER_ORDER_EVENTS, CUSTOMERS, help="Keep each customer's statistics."
)


@projection.on(OrderSummaryChanged)
def count_change(event: Envelope[OrderSummaryChanged], work: UnitOfWork) -> None:
    """Count what happened to an order; refused commands and shipping change nothing here."""
    order = event.payload
    before = work.get(CUSTOMERS, order.customer_id) or Customer(order.customer_id)
    after = changed(before, order)
    if after is not before:
        work.put(CUSTOMERS, order.customer_id, after)


def changed(customer: Customer, order: OrderSummaryChanged) -> Customer:
    """The customer after a change of an order.

    Cancelling a confirmed order takes it out of `confirmed_count` and `spent` again.
    """
    total = order.total
    if order.change == OrderPlaced.event_type:
        newest = customer.last_order_at
        return replace(
            customer,
            order_count=customer.order_count + 1,
            spent=_with(customer.spent, Money(EXACT_SUMS.subtract(total.amount, total.amount), total.currency)),
            last_order_at=order.created_at if newest is None else max(newest, order.created_at),
        )
    if order.change == OrderConfirmed.event_type:
        return replace(customer, confirmed_count=customer.confirmed_count + 1, spent=_with(customer.spent, total))
    if order.change != OrderCancelled.event_type:
        return customer
    customer = replace(customer, cancelled_count=customer.cancelled_count + 1)
    if order.confirmed_at is None:
        return customer
    back = Money(EXACT_SUMS.minus(total.amount), total.currency)
    return replace(customer, confirmed_count=customer.confirmed_count - 1, spent=_with(customer.spent, back))


def _with(spent: tuple[Money, ...], more: Money) -> tuple[Money, ...]:
    """The sums with an amount added to that of its currency, which comes last when it is new."""
    sums: dict[str, Decimal] = {money.currency: money.amount for money in spent}
    before = sums.get(more.currency)
    sums[more.currency] = more.amount if before is None else EXACT_SUMS.add(before, more.amount)
    return tuple([Money(amount, currency) for currency, amount in sums.items()])
