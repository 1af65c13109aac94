"""The order's part: confirmed when paid for, cancelled when stock or money cannot be had, or nobody answers in time."""

from typing import Any

from msgspec.structs import replace

from agents.choreography.asking import choreographed
from domain.orders import PENDING, Order
from domain.sagas.definition import REPLIES
from domain.sagas.machine import TIMED_OUT, Policy
from engine import Envelope, Metadata, Service, Timer, UnitOfWork, later, new_envelope
from streams.events.inventory import StockReservationFailed
from streams.events.orders import CancelOrder, ConfirmOrder, OrderCancelled, OrderConfirmed, OrderPlaced
from streams.events.payments import PaymentFailed, PaymentReceived
from streams.settings import shop_settings
from tables.sagas.choreography import DEADLINES, Deadline

TIMER = "choreographed-deadline"

service = Service("choreographed-order", tables=(DEADLINES,))


@service.reaction(OrderPlaced)
def expect_answers(placed: Envelope[OrderPlaced], work: UnitOfWork) -> None:
    """From now on somebody has to answer within the time for a step."""
    if placed.payload.saga != "choreography":
        return
    now_ms, order_id = work.now_ms, placed.payload.order_id
    due_ms = now_ms + Policy.of(shop_settings(work.settings)).step_timeout_ms
    origin = Metadata(placed.metadata.correlation_id, placed.event_id, placed.metadata.user_id)
    work.put(DEADLINES, order_id, Deadline(origin, now_ms, due_ms, due_ms))
    work.schedule(TIMER, order_id, due_ms)


@service.reaction(*REPLIES)
def decide(reply: Envelope[Any], work: UnitOfWork) -> None:
    """Confirm or cancel a pending order when an answer says so; any answer puts the deadline off."""
    order = choreographed(reply.payload.order_id, work)
    if order is None or order.status != PENDING:
        return
    known = work.get(DEADLINES, order.order_id)
    assert known is not None, "a pending order has a deadline"
    due_ms = work.now_ms + Policy.of(shop_settings(work.settings)).step_timeout_ms
    work.put(DEADLINES, order.order_id, replace(known, due_ms=due_ms))
    if isinstance(reply.payload, PaymentReceived):
        _say(order, ConfirmOrder(order.order_id), known, reply.event_id, work)
    elif isinstance(reply.payload, StockReservationFailed | PaymentFailed):
        _say(order, CancelOrder(order.order_id, reply.payload.reason), known, reply.event_id, work)


@service.reaction(OrderConfirmed, OrderCancelled)
def expect_no_more(ended: Envelope[OrderConfirmed | OrderCancelled], work: UnitOfWork) -> None:
    """Whatever comes now, the order waits no longer."""
    known = work.get(DEADLINES, ended.payload.order_id)
    if known is not None:
        work.cancel(TIMER, ended.payload.order_id, known.timer_ms)
        work.delete(DEADLINES, ended.payload.order_id)


@service.on_timer(TIMER)
def give_up(timer: Timer, work: UnitOfWork) -> None:
    """Cancel the order when nobody has answered in time."""
    order, known = choreographed(timer.key, work), work.get(DEADLINES, timer.key)
    if order is None or known is None or order.status != PENDING:
        return
    if work.now_ms < known.due_ms:
        work.put(DEADLINES, order.order_id, replace(known, timer_ms=known.due_ms))
        work.schedule(TIMER, order.order_id, known.due_ms)
    else:
        _say(order, CancelOrder(order.order_id, TIMED_OUT), known, str(known.origin.causation_id), work)


def _say(order: Order, payload: ConfirmOrder | CancelOrder, known: Deadline, cause_id: str, work: UnitOfWork) -> None:
    """Let the order decide, in this unit of work; business time goes on as long as it took, also for past orders."""
    assert order.created_at is not None, "a pending order was created"
    command = new_envelope(
        payload,
        event_id=cause_id,
        aggregate_id=order.order_id,
        timestamp=later(order.created_at, work.now_ms - known.placed_ms),
        metadata=replace(known.origin, causation_id=cause_id),
    )
    work.deliver(command)
