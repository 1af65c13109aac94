"""The payment's part: an order is charged once all of its lines are reserved, and refunded when it is cancelled."""

from msgspec.structs import replace

from agents.choreography.asking import ask, choreographed
from domain.orders import PENDING, Order
from domain.sagas.machine import Policy, backoff_ms
from engine import Envelope, Metadata, Service, Timer, UnitOfWork
from streams.events.inventory import StockReserved
from streams.events.orders import OrderCancelled
from streams.events.payments import ChargePayment, PaymentRefundFailed, RefundPayment
from streams.events.sagas import ResumeSaga
from streams.settings import shop_settings
from streams.topics import PAYMENT_COMMANDS
from tables.sagas.choreography import CHARGES, Charge

TIMER = "choreographed-refund"

service = Service("choreographed-payment", tables=(CHARGES,), topics=(PAYMENT_COMMANDS,))


@service.reaction(StockReserved)
def charge(reserved: Envelope[StockReserved], work: UnitOfWork) -> None:
    """Ask for the money when this was the last line."""
    order, line = choreographed(reserved.payload.order_id, work), reserved.payload.line
    if order is None or order.status != PENDING:
        return
    known = work.get(CHARGES, order.order_id) or Charge()
    if known.is_asked or line in known.reserved:
        return
    known = replace(known, reserved=(*known.reserved, line), is_asked=len(known.reserved) + 1 == len(order.items))
    work.put(CHARGES, order.order_id, known)
    if known.is_asked and order.customer_id is not None and order.total is not None:
        origin = Metadata(reserved.metadata.correlation_id, reserved.event_id, reserved.metadata.user_id)
        command = ChargePayment(order.order_id, order.customer_id, order.total)
        ask(work, PAYMENT_COMMANDS, command, origin, reserved.timestamp, "charge")


@service.reaction(OrderCancelled)
def refund(cancelled: Envelope[OrderCancelled], work: UnitOfWork) -> None:
    """Give the money back, if it was asked for."""
    order = choreographed(cancelled.payload.order_id, work)
    known = work.get(CHARGES, order.order_id) if order is not None else None
    if order is not None and known is not None and known.is_asked:
        origin = Metadata(cancelled.metadata.correlation_id, cancelled.event_id, cancelled.metadata.user_id)
        _refund(order, replace(known, origin=origin), work)


@service.reaction(PaymentRefundFailed)
def try_again_later(failed: Envelope[PaymentRefundFailed], work: UnitOfWork) -> None:
    """Refund again after a pause, a few times; then it waits for somebody who resumes the saga."""
    order_id = failed.payload.order_id
    known = work.get(CHARGES, order_id)
    if known is None or not known.is_refund_asked:
        return  # a repeated answer
    work.put(CHARGES, order_id, replace(known, refused=known.refused + 1, is_refund_asked=False))
    policy = Policy.of(shop_settings(work.settings))
    if known.refused < policy.retries:
        work.schedule(TIMER, order_id, work.now_ms + backoff_ms(policy, known.refused + 1))


@service.on_timer(TIMER)
def try_again(timer: Timer, work: UnitOfWork) -> None:
    """Refund again."""
    order, known = choreographed(timer.key, work), work.get(CHARGES, timer.key)
    if order is not None and known is not None:
        _refund(order, known, work)


@service.reaction(ResumeSaga)
def resume(command: Envelope[ResumeSaga], work: UnitOfWork) -> None:
    """Refund what was refused, with all tries anew."""
    order, known = choreographed(command.payload.order_id, work), work.get(CHARGES, command.payload.order_id)
    if order is not None and known is not None and known.refused:
        _refund(order, replace(known, refused=0), work)


def _refund(order: Order, known: Charge, work: UnitOfWork) -> None:
    assert order.cancelled_at is not None, "only a cancelled order is refunded"
    work.put(CHARGES, order.order_id, replace(known, is_refund_asked=True))
    command = RefundPayment(order.order_id, order.cancel_reason)
    step = f"refund:{work.now_ms}"
    ask(work, PAYMENT_COMMANDS, command, known.origin, order.cancelled_at, step)
