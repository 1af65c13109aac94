"""The projection that finds orders by time and by correlation.

It reads `order-events`, which are kept for ever: where it is new, it begins with the oldest, so that orders that were
placed before there was an index are in it too.
"""

from typing import Any

from domain.orders import begins_order
from engine import Envelope, Service, UnitOfWork
from streams.events.orders import OrderCancelled, OrderConfirmed, OrderPlaced, OrderRejected, OrderShipped
from streams.topics import ORDER_EVENTS
from tables.orders.index import ORDERS_BY_CORRELATION, ORDERS_BY_TIME, CorrelatedOrder, Entry, PlacedOrder

service = Service("order-index", tables=(ORDERS_BY_TIME, ORDERS_BY_CORRELATION))

_ENTRY = Entry()


projection = service.projection(
    "index-orders",
    ORDER_EVENTS,
    ORDERS_BY_TIME,
    ORDERS_BY_CORRELATION,
    help="Keep orders where they are found by time and by correlation.",
)


@projection.on(OrderPlaced, OrderConfirmed, OrderCancelled, OrderShipped, OrderRejected)
def index_order(event: Envelope[Any], work: UnitOfWork) -> None:
    """Give an order that begins its place; note each correlation the first time something of it happens to an order."""
    order_id = event.aggregate_id
    if begins_order(event.payload):
        work.put(ORDERS_BY_TIME, PlacedOrder(event.timestamp, order_id), _ENTRY)
    if event.metadata.correlation_id is not None:
        key = CorrelatedOrder(event.metadata.correlation_id, order_id)
        if work.get(ORDERS_BY_CORRELATION, key) is None:
            work.put(ORDERS_BY_CORRELATION, key, _ENTRY)
