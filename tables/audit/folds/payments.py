"""The fold of payments: what the events of `payment-events` make of the payment of each order."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from msgspec.structs import replace

from domain.payments import FAILED, RECEIVED, REFUNDED, Payment
from engine import AnyTable, Envelope, Record
from streams.events.payments import PaymentFailed, PaymentReceived, PaymentRefunded, PaymentRefundFailed
from streams.topics import PAYMENT_EVENTS
from tables.audit.findings import Findings
from tables.audit.folds import RowLedger, Subject
from tables.audit.ledger import Entry, Ledger, Scratch
from tables.payments import PAYMENTS


class PaymentFold:
    """Makes the rows of `payments`."""

    def __init__(self, findings: Findings, scratch: Scratch) -> None:
        self.entries: Ledger[Entry[Payment]] = Ledger(Entry[Payment], "payments", scratch)
        self.ledgers: Mapping[AnyTable, RowLedger] = {PAYMENTS: self.entries}
        self._subject = Subject(PAYMENT_EVENTS.name, "payment of order", findings)

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next event in."""
        subject, key = self._subject, event.aggregate_id.encode()
        entry = self.entries.get(key)
        subject.check_place(record, event, event.aggregate_id)
        before = entry.row if entry is not None else None
        version = subject.next_version(record, event, before.version if before is not None else 0)
        if version is None:
            return
        subject.check_id(record, event, (str(version),))
        wrong = _wrong(before, event.payload)
        if wrong is not None:
            subject.impossible(record, event, wrong)
        after = replace(_after(before, event), version=version)
        self.entries.put(key, Entry(after, record.offset), is_new=entry is None)


def _wrong(payment: Payment | None, payload: Any) -> str | None:
    """Why an event cannot follow; None when all is well."""
    if isinstance(payload, PaymentReceived | PaymentFailed):
        return None if payment is None else f"it is {payment.status} already"
    if payment is None or payment.status != RECEIVED:
        return f"it is {payment.status if payment is not None else 'not there'}"
    if payload.amount != payment.amount:
        return f"its amount is {payload.amount}, that of the payment {payment.amount}"
    return None


def _after(payment: Payment | None, event: Envelope[Any]) -> Payment:
    """The payment after an event."""
    payload, time = event.payload, event.timestamp
    known = payment or Payment(payload.order_id, payload.customer_id, FAILED, payload.amount, None, None, 0)
    match payload:
        case PaymentReceived():
            return replace(known, status=RECEIVED, amount=payload.amount, reference=payload.reference, charged_at=time)
        case PaymentFailed():
            return replace(known, status=FAILED, reason=payload.reason, failed_at=time)
        case PaymentRefunded():
            return replace(known, status=REFUNDED, refund_reference=payload.reference, reason=None, refunded_at=time)
        case PaymentRefundFailed():
            return replace(known, reason=payload.reason, refunds_refused=known.refunds_refused + 1)
    return known
