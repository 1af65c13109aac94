"""The audit of sagas: the row of each is held against its order, its payment and the answers about its lines."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from domain.orders import CANCELLED, PENDING
from domain.payments import FAILED, RECEIVED, REFUNDED
from domain.sagas.state import COMPENSATED, COMPENSATION_FAILED, COMPLETED, Saga, StepRun
from engine import Envelope, Record, derived_id
from streams.events.inventory import StockReleased, StockReservationFailed, StockReserved
from streams.topics import ORDER_EVENTS, PAYMENT_EVENTS, SAGA_REPLIES
from tables.audit.findings import ROW_DIFFERS, ROW_UNFOUNDED, SUM_DIFFERS, Findings
from tables.audit.folds.orders import OrderEntry, OrderFold
from tables.audit.folds.payments import PaymentFold
from tables.audit.ledger import Ledger, Scratch
from tables.sagas import FAILED_SAGAS, SAGA_COUNTS, SAGAS

DONE: Final = frozenset(("done", "undoing", "undo_failed"))
"""States of a step that was done and is not undone yet."""
OPEN: Final = frozenset(("pending", "asked", "timed_out"))
_LINE_ANSWERS: Final[Mapping[type, str]] = {
    StockReserved: "done",
    StockReservationFailed: "failed",
    StockReleased: "undone",
}


class Answers(msgspec.Struct):
    """What was answered about the lines of an order: lines by answer, and those that its saga itself had asked for."""

    offset: int
    lines: dict[str, list[int]]
    asked: list[int]


class ReplyFold:
    """Notes the answers of `saga-replies`."""

    def __init__(self, orders: OrderFold, scratch: Scratch) -> None:
        self.answers: Ledger[Answers] = Ledger(Answers, "answers", scratch)
        self._orders = orders

    def apply(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next answer in."""
        answer = _LINE_ANSWERS.get(type(event.payload))
        if answer is None:
            return
        key, line = event.payload.order_id.encode(), event.payload.line
        known = self.answers.get(key)
        answers = known if known is not None else Answers(0, {}, [])
        answers.offset = record.offset
        lines = answers.lines.setdefault(answer, [])
        if line not in lines:
            lines.append(line)
        order = self._orders.entries.get(key)
        placed_id = order.placed_id if order is not None else None
        is_new = answer != "undone" and line not in answers.asked
        if is_new and placed_id and event.metadata.causation_id == derived_id(placed_id, f"reserve:{line}"):
            answers.asked.append(line)
        self.answers.put(key, answers, is_new=known is None)


class SagaAudit:
    """Holds rows of `sagas` and what counts them against what was folded; `check` each row, then the counts.

    With `complete` the topic of answers begins with its first record: then a line that is done has an answer there.
    """

    def __init__(
        self, orders: OrderFold, payments: PaymentFold | None, replies: ReplyFold, complete: bool, findings: Findings
    ) -> None:
        self._orders = orders
        self._payments = payments
        self._replies = replies
        self._complete = complete
        self._findings = findings
        self.counts: dict[str, int] = {}
        self.founded = 0

    def check(self, saga: Saga) -> None:
        """Hold one saga against its order, payment and answers."""
        self.counts[saga.state] = self.counts.get(saga.state, 0) + 1
        order = self._orders.entries.get(saga.order_id.encode())
        if order is None or order.placed_id is None or order.row.saga is None:
            self._say(ROW_UNFOUNDED, "there is a saga, but no event that begins it", ORDER_EVENTS.name, None, saga)
            return
        self.founded += 1
        for wrong in (*_beginning(saga, order), *_order_and_saga(saga, order)):
            self._say(ROW_DIFFERS, wrong, ORDER_EVENTS.name, order.offset, saga)
        if self._payments is not None:
            self._check_payment(saga, self._payments)
        self._check_lines(saga)

    def _check_payment(self, saga: Saga, payments: PaymentFold) -> None:
        entry, run = payments.entries.get(saga.order_id.encode()), _step(saga, "charge")
        status = entry.row.status if entry is not None else None
        allowed = {
            "done": (RECEIVED,),
            "undoing": (RECEIVED,),
            "undo_failed": (RECEIVED,),
            "undone": (REFUNDED, FAILED),
            "failed": (FAILED,),
        }
        if run is not None and status not in allowed.get(run.state, (status,)):
            detail = f"the step charge is {run.state}, the payment {status or 'has no event'}"
            self._say(ROW_DIFFERS, detail, PAYMENT_EVENTS.name, entry.offset if entry is not None else None, saga)

    def _check_lines(self, saga: Saga) -> None:
        known = self._replies.answers.get(saga.order_id.encode())
        answers = known if known is not None else Answers(0, {}, [])
        for run in saga.steps:
            if run.name != "reserve":
                continue
            needed = "done" if run.state in DONE else run.state if run.state in ("failed", "undone") else None
            wrong = None
            if needed is not None and self._complete and run.line not in answers.lines.get(needed, ()):
                wrong = f"line {run.line} is {run.state}, but no answer says so"
            elif run.line in answers.asked and run.state in OPEN:
                wrong = f"line {run.line} is {run.state}, but was answered"
            if wrong is not None:
                self._say(ROW_DIFFERS, wrong, SAGA_REPLIES.name, answers.offset if known is not None else None, saga)

    def check_counts(self, counts: Mapping[str, int]) -> None:
        """Hold the kept counts against the sagas there are."""
        for state in sorted({*counts, *self.counts}):
            kept, found = counts.get(state, 0), self.counts.get(state, 0)
            if kept != found:
                detail = f"it counts {kept} sagas, {found} are in this state"
                self._findings.add(SUM_DIFFERS, detail, ORDER_EVENTS.name, None, SAGA_COUNTS.name, state)

    def check_failed(self, saga: Saga, is_listed: bool) -> None:
        """Hold a saga against the list of those that wait for somebody."""
        if (saga.state == COMPENSATION_FAILED) != is_listed:
            detail = f"the saga is {saga.state}, and is {'' if is_listed else 'not '}listed as failed"
            self._findings.add(ROW_DIFFERS, detail, ORDER_EVENTS.name, None, FAILED_SAGAS.name, saga.order_id)

    def _say(self, kind: str, detail: str, topic: str, offset: int | None, saga: Saga) -> None:
        self._findings.add(kind, detail, topic, offset, SAGAS.name, saga.order_id)


def _beginning(saga: Saga, order: OrderEntry) -> Iterator[str]:
    """Is what the saga repeats of its order's beginning right?"""
    expected = {
        "style": order.row.saga,
        "placed_id": order.placed_id,
        "correlation_id": order.correlation_id,
        "user_id": order.user_id,
        "placed_at": order.placed_at,
    }
    for name, value in expected.items():
        if getattr(saga, name) != value:
            yield f"{name} is {getattr(saga, name)}, should be {value}"
    lines = [run.line for run in saga.steps if run.name == "reserve"]
    if lines != list(range(1, len(order.row.items) + 1)):
        yield f"it reserves lines {lines} of {len(order.row.items)}"


def _order_and_saga(saga: Saga, order: OrderEntry) -> Iterator[str]:
    """Does the saga agree with what has become of its order?"""
    status = order.row.status
    place, confirm = _step(saga, "place"), _step(saga, "confirm")
    if place is not None and (place.state == "undone") != (status == CANCELLED):
        yield f"the step place is {place.state}, the order {status}"
    if confirm is not None and (confirm.state == "done") != (order.row.confirmed_at is not None):
        yield f"the step confirm is {confirm.state}, the order was {'not ' * (confirm.state == 'done')}confirmed"
    if saga.state == COMPLETED and status in (PENDING, CANCELLED):
        yield f"it is {saga.state}, the order {status}"
    if saga.state == COMPENSATED and status != CANCELLED:
        yield f"it is {saga.state}, the order {status}"


def _step(saga: Saga, name: str) -> StepRun | None:
    return next((run for run in saga.steps if run.name == name), None)
