"""Orders placed with an Idempotency-Key: the first request under a key becomes a command, repeated ones do not."""

from engine import Envelope, Service, UnitOfWork
from streams.events.orders import PlaceOrder
from streams.topics import ORDER_COMMANDS
from streams.topics import ORDER_REQUESTS as REQUESTS_TOPIC
from tables.orders.requests import FINGERPRINT_HEADER, ORDER_REQUESTS, OrderRequest

service = Service("order-requests", tables=(ORDER_REQUESTS,), topics=(ORDER_COMMANDS,))


requests = service.agent("accept-requests", REQUESTS_TOPIC, help="Let one request per Idempotency-Key through.")


@requests.on(PlaceOrder)
def accept(command: Envelope[PlaceOrder], work: UnitOfWork) -> None:
    """Pass the command on, if it is the first under its key.

    The record's key is customer and idempotency key, its header `body_fingerprint` tells bodies apart.
    """
    key = (work.record.key or b"").decode()
    if work.get(ORDER_REQUESTS, key) is not None:
        return
    fingerprint = dict(work.record.headers).get(FINGERPRINT_HEADER, b"").decode()
    request = OrderRequest(command.aggregate_id, command.event_id, fingerprint, work.now_ms)
    work.put(ORDER_REQUESTS, key, request)
    work.send(ORDER_COMMANDS, command.aggregate_id, command)
