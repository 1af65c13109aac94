"""The payment service: asks the payment gateway, and turns payment commands into events, state and answers to sagas."""

from collections.abc import Coroutine
from typing import Any

from domain.payments import Charge, Outcome, PaymentCommand, PaymentEvent, call_for, decide, evolve, restate
from engine import Envelope, Service, UnitOfWork, follow_up
from streams.events.integration import to_integration
from streams.events.payments import PAYMENT_TYPES, ChargePayment, RefundPayment
from streams.payment_gateway import open_gateway
from streams.payment_gateway.port import PaymentGateway
from streams.settings import shop_settings
from streams.topics import INTEGRATION_EVENTS, PAYMENT_COMMANDS, PAYMENT_EVENTS, SAGA_REPLIES
from tables.payments import PAYMENTS

service = Service(
    "payments",
    tables=(PAYMENTS,),
    topics=(PAYMENT_EVENTS, SAGA_REPLIES, INTEGRATION_EVENTS),
    types=PAYMENT_TYPES,
)


commands = service.agent(
    "decide-payments",
    PAYMENT_COMMANDS,
    help="Ask the payment gateway, and turn payment commands into payment events.",
    opens=open_gateway,
)


@commands.call
def ask(
    gateway: PaymentGateway, command: Envelope[PaymentCommand], work: UnitOfWork
) -> Coroutine[Any, Any, Outcome] | None:
    """The call to make before a command is decided, None where none is needed."""
    call = call_for(
        work.get(PAYMENTS, command.aggregate_id), command.payload, shop_settings(work.settings).price_decimals
    )
    if call is None:
        return None
    if isinstance(call, Charge):
        return gateway.charge(call.order_id, call.customer_id, call.amount, call.key)
    return gateway.refund(call.order_id, call.reference, call.amount, call.key)


@commands.on(ChargePayment, RefundPayment)
def decide_payment(command: Envelope[PaymentCommand], work: UnitOfWork) -> None:
    """Decide one command with the gateway's answer; one that changes nothing is told how the payment stands."""
    payment = work.get(PAYMENTS, command.aggregate_id)
    known = restate(payment, command.payload)
    if known is not None:
        version = payment.version if payment is not None else 0
        again = follow_up(command, known, step=f"again:{version}", aggregate_id=command.aggregate_id)
        work.send_raw(SAGA_REPLIES, command.aggregate_id.encode(), work.encode(again))
        work.deliver(again)
        return
    _record(work, command, decide(payment, command.payload, work.outcome, shop_settings(work.settings).price_decimals))


def _record(work: UnitOfWork, command: Envelope[PaymentCommand], event: PaymentEvent) -> None:
    """Apply an event to the payment, and tell the others."""
    key = command.aggregate_id.encode()
    before = work.get(PAYMENTS, command.aggregate_id)
    version = before.version + 1 if before is not None else 1
    # A refund that was refused may be delivered again, and is then another event of the same command.
    envelope = follow_up(
        command, event, step=str(version), aggregate_id=command.aggregate_id, aggregate_version=version
    )
    value = work.encode(envelope)
    work.put(PAYMENTS, command.aggregate_id, evolve(before, envelope))
    work.send_raw(PAYMENT_EVENTS, key, value)
    work.send_raw(SAGA_REPLIES, key, value)
    published = to_integration(envelope)
    if published is not None:
        work.send_raw(INTEGRATION_EVENTS, key, *published)
    # The saga shares the order's key: it need not wait until this comes back by saga-replies.
    work.deliver(envelope)
