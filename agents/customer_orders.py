"""The projection of each customer's orders."""

from engine import Envelope, Service, UnitOfWork
from streams.events.orders import OrderSummaryChanged
from streams.topics import CUSTOMER_ORDER_EVENTS
from tables.orders.customer_orders import CUSTOMER_ORDERS, CustomerOrder, CustomerOrderKey

service = Service("customer-orders", tables=(CUSTOMER_ORDERS,))


projection = service.projection(
    "project-customer-orders", CUSTOMER_ORDER_EVENTS, CUSTOMER_ORDERS, help="Keep each customer's list of orders."
)


@projection.on(OrderSummaryChanged)
def store_summary(event: Envelope[OrderSummaryChanged], work: UnitOfWork) -> None:
    """Store the order as it is now; its place in the list never changes."""
    order = event.payload
    row = CustomerOrder(
        order.order_id,
        order.customer_id,
        order.status,
        order.item_count,
        order.total,
        order.created_at,
        order.confirmed_at,
        order.cancelled_at,
        int(event.aggregate_version or 0),
    )
    work.put(CUSTOMER_ORDERS, CustomerOrderKey(order.customer_id, order.created_at, order.order_id), row)
