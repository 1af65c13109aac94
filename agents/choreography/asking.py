"""How choreographed services ask for something: command ids follow from what caused them."""

from datetime import datetime

from domain.orders import Order
from engine import Message, Metadata, Topic, UnitOfWork, derived_id, new_envelope
from tables.orders import ORDERS


def choreographed(order_id: str, work: UnitOfWork) -> Order | None:
    """The order, if it began in this style."""
    order = work.get(ORDERS, order_id)
    return order if order is not None and order.saga == "choreography" else None


def ask(work: UnitOfWork, topic: Topic, payload: Message, origin: Metadata, timestamp: datetime, step: str) -> None:
    """Send a command; `origin.causation_id` is what it follows from, `step` differs for all that follows from that."""
    assert payload.aggregate_id_field is not None, "a command names its aggregate"
    key = getattr(payload, payload.aggregate_id_field)
    command_id = derived_id(str(origin.causation_id), step)
    work.send(
        topic,
        key,
        new_envelope(payload, event_id=command_id, aggregate_id=key, timestamp=timestamp, metadata=origin),
    )
