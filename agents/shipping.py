"""Shipping: when an order is sent away, the pieces of its lines leave the shelf."""

from engine import Envelope, Service, UnitOfWork, follow_up
from streams.events.inventory import INVENTORY_TYPES, ShipStock
from streams.events.orders import OrderShipped
from streams.topics import INVENTORY_COMMANDS
from tables.orders import ORDERS

service = Service("shipping", topics=(INVENTORY_COMMANDS,), types=INVENTORY_TYPES)


@service.reaction(OrderShipped)
def ship_lines(shipped: Envelope[OrderShipped], work: UnitOfWork) -> None:
    """Ask the stock of each line's product to send the line's pieces away."""
    order = work.get(ORDERS, shipped.payload.order_id)
    if order is None:
        raise LookupError(f"order {shipped.payload.order_id} was shipped and is not there")
    for line, item in enumerate(order.items, start=1):
        command = ShipStock(item.product_id, order.order_id, line)
        step = f"{command.event_type}:{line}"
        work.send(
            INVENTORY_COMMANDS, item.product_id, follow_up(shipped, command, step=step, aggregate_id=item.product_id)
        )
