"""No interleaving of charges, refunds, repetitions, crashes and lost answers takes money twice, or loses any."""

from __future__ import annotations

from collections.abc import Coroutine
from decimal import Decimal
from typing import Any, Literal

import msgspec
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agents.payments import ask, commands
from domain.payments import RECEIVED, REFUNDED, Payment, evolve
from engine.declare.envelope import Envelope, Metadata, new_envelope
from engine.declare.errors import Unavailable
from engine.declare.handlers import acceptance
from engine.declare.registry import EventRegistry
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record
from streams.events.money import Money
from streams.events.payment_answers import Charged, Declined, Refunded
from streams.events.payments import (
    PAYMENT_TYPES,
    ChargePayment,
    PaymentFailed,
    PaymentReceived,
    PaymentRefunded,
    PaymentRefundFailed,
    RefundPayment,
)
from streams.settings import Settings
from streams.topics import PAYMENT_COMMANDS, PAYMENT_EVENTS, SAGA_REPLIES
from tables.payments import PAYMENTS
from tests.unit.test_envelope import TEN_O_CLOCK

ORDERS = ("order-1", "order-2")
REGISTRY = EventRegistry(PAYMENT_TYPES)
SETTINGS = Settings(_env_file=None)
HANDLE = commands.bind(acceptance(REGISTRY, PAYMENT_COMMANDS, 1 << 20, lambda key: 0))

# What goes wrong on the way: the request is lost, the answer is lost, the process dies before it commits the answer.
Trouble = Literal["request lost", "answer lost", "crash"]
troubles = st.lists(st.sampled_from(["request lost", "answer lost", "crash"]), max_size=4)
amounts = st.sampled_from(["10", "19.90", "0", "-5"])


class Gateway:
    """Keeps accounts and honours idempotency keys: the same key has the same answer and takes effect once."""

    def __init__(self) -> None:
        self.money: dict[str, Decimal] = {}
        self.refused: dict[str, list[str]] = {}  # references of orders whose refunds were refused, oldest first
        self.accepts = True
        self.trouble: Trouble | None = None
        self._answers: dict[str, tuple[Any, Any]] = {}  # call and answer, by key

    async def charge(self, order_id: str, customer_id: str, amount: Money, key: str) -> Charged | Declined:
        """Take money."""
        return self._once(key, (order_id, customer_id, amount), Charged(f"ch-{order_id}"), amount.amount)  # type: ignore

    async def refund(self, order_id: str, reference: str, amount: Money, key: str) -> Refunded | Declined:
        """Give money back, of a charge that was made."""
        assert reference == f"ch-{order_id}"
        return self._once(key, (order_id, reference, amount), Refunded(f"re-{order_id}"), -amount.amount)  # type: ignore

    def _once(self, key: str, call: Any, accepted: Charged | Refunded, amount: Decimal) -> Any:
        if self.trouble == "request lost":
            raise Unavailable("connection refused")
        if key not in self._answers:
            self._answers[key] = call, accepted if self.accepts else Declined("no")
            if self.accepts:
                self.money[call[0]] = self.money.get(call[0], Decimal(0)) + amount
        first_call, answer = self._answers[key]
        assert call == first_call, "the same key for another call"
        if self.trouble == "answer lost":
            raise Unavailable("timeout")
        return answer


class Payments(RuleBasedStateMachine):
    """The service, record by record: its commits are this machine's."""

    def __init__(self) -> None:
        super().__init__()
        self.gateway = Gateway()
        self.rows: dict[Any, Any] = {}
        self.commands: list[Envelope[Any]] = []
        self.events: list[Envelope[Any]] = []
        self.replies: list[Envelope[Any]] = []
        self.handled = 0

    def committed_or_committing(self, table: Any, key: Any) -> Any:
        """Where units of work find what was committed."""
        return self.rows.get((table, key))

    @rule(order=st.sampled_from(ORDERS), amount=amounts, accepts=st.booleans(), troubles=troubles)
    def charge(self, order: str, amount: str, accepts: bool, troubles: list[Trouble]) -> None:
        self._send(ChargePayment(order, f"customer-of-{order}", Money(Decimal(amount), "USD")), accepts, troubles)

    @rule(order=st.sampled_from(ORDERS), accepts=st.booleans(), troubles=troubles)
    def refund(self, order: str, accepts: bool, troubles: list[Trouble]) -> None:
        self._send(RefundPayment(order), accepts, troubles)

    @precondition(lambda self: self.commands)
    @rule(data=st.data(), accepts=st.booleans(), troubles=troubles)
    def deliver_again(self, data: st.DataObject, accepts: bool, troubles: list[Trouble]) -> None:
        self._deliver(data.draw(st.sampled_from(self.commands)), accepts, troubles)

    @invariant()
    def the_gateway_has_the_money_of_what_was_received_and_not_refunded(self) -> None:
        for order in ORDERS:
            payment: Payment | None = self.rows.get((PAYMENTS, order))
            kept = payment is not None and payment.status == RECEIVED
            expected = payment.amount.amount if kept and payment and payment.amount else Decimal(0)
            assert self.gateway.money.get(order, Decimal(0)) == expected

    @invariant()
    def events_tell_the_rows_and_their_ids_are_their_own(self) -> None:
        rows: dict[Any, Payment] = {}
        for event in self.events:
            rows[PAYMENTS, event.aggregate_id] = evolve(rows.get((PAYMENTS, event.aggregate_id)), event)
        assert rows == self.rows
        told = [*self.events, *(reply for reply in self.replies if reply.aggregate_version is msgspec.UNSET)]
        by_id = {event.event_id: event.payload for event in told}
        assert all(by_id[event.event_id] == event.payload for event in told)
        assert len({event.event_id for event in self.events}) == len(self.events)

    @invariant()
    def every_delivery_of_a_command_is_answered_once(self) -> None:
        assert len(self.replies) == self.handled
        assert [reply for reply in self.replies if reply.aggregate_version is not msgspec.UNSET] == self.events

    @invariant()
    def answers_agree_with_the_payment_as_it_then_was(self) -> None:
        rows: dict[str, Payment] = {}
        for reply in self.replies:
            if reply.aggregate_version is not msgspec.UNSET:
                rows[reply.aggregate_id] = evolve(rows.get(reply.aggregate_id), reply)
            payment, answer = rows[reply.aggregate_id], reply.payload
            match answer:
                case PaymentReceived() | PaymentRefundFailed():
                    assert payment.status == RECEIVED
                case PaymentRefunded():
                    assert (payment.status, answer.reference) == (REFUNDED, payment.refund_reference)
                case PaymentFailed():
                    assert (payment.status, answer.reason) == ("failed", payment.reason)

    def _send(self, payload: ChargePayment | RefundPayment, accepts: bool, troubles: list[Trouble]) -> None:
        command = new_envelope(
            payload,
            event_id=f"command-{len(self.commands)}",
            aggregate_id=payload.order_id,
            timestamp=TEN_O_CLOCK,
            metadata=Metadata(),
        )
        self.commands.append(command)
        self._deliver(command, accepts, troubles)

    def _deliver(self, command: Envelope[Any], accepts: bool, troubles: list[Trouble]) -> None:
        """Bring a command to its end, as the engine does: again and again, through all troubles."""
        for trouble in (*troubles, None):
            self.gateway.accepts, self.gateway.trouble = accepts, trouble
            work = UnitOfWork(0, self, lambda key: 0, REGISTRY.encode, SETTINGS)
            call = ask(self.gateway, command, work)
            try:
                work.outcome = None if call is None else _run(call)
            except Unavailable:
                continue
            work.record = Record(0, 0, command.aggregate_id.encode(), REGISTRY.encode(command), ())
            HANDLE(work.record, work)
            if trouble != "crash":
                self._commit(work)
                return

    def _commit(self, work: UnitOfWork) -> None:
        self.handled += 1
        self.rows |= {(table, key): row for table, rows in work.rows.items() for key, row in rows.items()}
        for topic, into in ((PAYMENT_EVENTS, self.events), (SAGA_REPLIES, self.replies)):
            into += [REGISTRY.decode(value or b"") for _, value, _ in work.outputs.get((topic.name, 0), ())]


def _run(call: Coroutine[Any, Any, Any]) -> Any:
    """What a call returns that waits for nothing."""
    try:
        call.send(None)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("the gateway of this test waits for something")


TestPayments = Payments.TestCase
TestPayments.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
