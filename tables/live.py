"""What `/live` tells of the shop as it happens: orders, sagas, and how many of these are in which state."""

from collections.abc import Mapping
from typing import Any, Final, get_args

from domain.orders import UNKNOWN, Order
from domain.sagas.state import Saga, SagaState
from engine import Partition, Service, format_timestamp
from streams.topics import INVENTORY_COMMANDS, INVENTORY_EVENTS
from tables.orders import ORDER_HISTORY, ORDERS
from tables.sagas import SAGA_COUNTS, SAGAS

SAGA_STATES: Final[tuple[str, ...]] = get_args(SagaState)

service = Service("live-rows")
service.history(ORDER_HISTORY)
service.history(INVENTORY_EVENTS, INVENTORY_COMMANDS, INVENTORY_EVENTS)


@service.live(ORDERS, "orders")
def live_order(_number: int, order_id: str, order: Order) -> dict[str, Any] | None:
    """An order as a list of the latest ones shows it."""
    if order.status == UNKNOWN:
        return None
    return {
        "order_id": order_id,
        "customer_id": order.customer_id,
        "status": order.status,
        "item_count": order.item_count,
        "total": order.total,
        "created_at": None if order.created_at is None else format_timestamp(order.created_at),
        "version": order.version,
    }


@service.live(SAGAS, "sagas")
def live_saga(_number: int, order_id: str, saga: Saga) -> dict[str, Any]:
    """The state of a saga."""
    return {"order_id": order_id, "state": saga.state}


@service.figure("sagas", SAGA_COUNTS)
def count_sagas(task: Partition) -> Mapping[str, int]:
    """Sagas by state."""
    found = {state: row.count for state, row in task.scan(SAGA_COUNTS)}
    return {state: found.get(state, 0) for state in SAGA_STATES}
