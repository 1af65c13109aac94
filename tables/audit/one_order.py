"""The audit of one order: its row, history, payment and saga held against the events of its partition."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from engine import AnyTable, encode_prefix
from engine.inspection import Cut, Engine, PartitionTask, take_cut
from streams.topics import ORDER_EVENTS, PAYMENT_EVENTS, SAGA_REPLIES
from tables.audit.comparison import compare_row
from tables.audit.comparison.history import check_row
from tables.audit.comparison.summaries import SummaryAudit
from tables.audit.findings import ROW_MISSING, ROW_UNFOUNDED, Findings
from tables.audit.folds import Fold
from tables.audit.folds.orders import OrderFold
from tables.audit.folds.payments import PaymentFold
from tables.audit.folds.sagas import ReplyFold, SagaAudit
from tables.audit.ledger import Scratch
from tables.audit.pace import Pace
from tables.audit.reading import Reader, Unreadable, read_topic
from tables.audit.unsettled import unsettled_of
from tables.orders import ORDER_HISTORY, ORDERS
from tables.payments import PAYMENTS
from tables.sagas import FAILED_SAGAS, SAGAS

TOPICS: Final = (ORDER_EVENTS, PAYMENT_EVENTS, SAGA_REPLIES)
HISTORY_ROWS_MAX: Final = 100_000


class OrderAudit:
    """The audit of an order in the partition of its id."""

    def __init__(self, engine: Engine, task: PartitionTask, order_id: str) -> None:
        self.findings = Findings(task.number)
        self._engine = engine
        self._task = task
        self._order_id = order_id
        self._key = order_id.encode()
        self._pace = Pace(engine)

    async def run(self) -> None:
        """Audit the order; raises TransportError and InfrastructureError when its partition cannot be cut."""
        cut = await take_cut(self._task, self._engine.broker, [topic.name for topic in TOPICS])
        scratch = Scratch(Path())  # nothing of one order ever needs it
        try:
            orders = OrderFold(cut.rows, self.findings, scratch)
            summaries = SummaryAudit(orders, self._order_id, self.findings)
            if not await self._read(cut, ORDER_EVENTS.name, orders, summaries=summaries):
                return
            self._compare(cut, ORDER_EVENTS.name, orders, ORDERS)
            self._compare_history(cut, orders)
            payments = PaymentFold(self.findings, scratch)
            if not await self._read(cut, PAYMENT_EVENTS.name, payments):
                return
            self._compare(cut, PAYMENT_EVENTS.name, payments, PAYMENTS)
            replies = ReplyFold(orders, scratch)
            if await self._read(cut, SAGA_REPLIES.name, replies, "take-replies"):
                is_complete = cut.starts[SAGA_REPLIES.name] == 0
                self._compare_saga(cut, orders, SagaAudit(orders, payments, replies, is_complete, self.findings))
            await summaries.look(self._engine, ORDER_EVENTS.name, self._pace)
        except Unreadable as error:
            self.findings.cannot_prove(str(error))
        finally:
            cut.rows.close()

    async def _read(
        self,
        cut: Cut,
        topic: str,
        fold: Fold | ReplyFold,
        agent: str | None = None,
        summaries: SummaryAudit | None = None,
    ) -> bool:
        """Hand the order's events to a fold, as far as its agent is where there is one; whether that was possible.

        Raises Unreadable.
        """
        start, number = cut.starts[topic], self._task.number
        if start > 0 and agent is None:
            self.findings.cannot_prove(f"{topic}/{number} begins at offset {start}: its oldest events were removed")
            return False
        readers = [Reader(fold.apply, cut.ends[topic])]
        if agent is not None:
            unsettled = await unsettled_of(cut.rows, agent, topic, self._pace)
            readers = [Reader(fold.apply, min(cut.position(agent, topic), cut.ends[topic]), unsettled)]
        if summaries is not None:
            readers.append(Reader(summaries.expect, cut.ends[topic]))
        await read_topic(self._engine, number, topic, readers, self.findings, self._pace, self._key, start=start)
        return True

    def _compare(self, cut: Cut, topic: str, fold: Fold, table: AnyTable) -> None:
        """Hold the order's row against its events, and its events against the row."""
        entry, raw = fold.ledgers[table].get(self._key), cut.rows.read_raw(table, self._key)
        self.findings.rows += raw is not None
        if raw is None:
            if entry is not None:
                self.findings.add(ROW_MISSING, "events lead to a row, but there is none", topic, entry.offset,
                                  table.name, self._order_id)  # fmt: skip
        elif entry is None:
            self.findings.add(ROW_UNFOUNDED, "there is a row, but no event that leads to it", topic, None,
                              table.name, self._order_id)  # fmt: skip
        else:
            compare_row(table, self._key, raw, entry.row, topic, entry.offset, self.findings)

    def _compare_history(self, cut: Cut, orders: OrderFold) -> None:
        """Is there a row of the order's history without its event?"""
        prefix = encode_prefix(self._order_id)
        for raw, _ in cut.rows.rows(ORDER_HISTORY, prefix, HISTORY_ROWS_MAX, prefix):
            self.findings.rows += 1
            check_row(raw, orders, self.findings)

    def _compare_saga(self, cut: Cut, orders: OrderFold, audit: SagaAudit) -> None:
        """Hold the order's saga against all of them."""
        saga = cut.rows.read(SAGAS, self._order_id)
        if saga is not None:
            self.findings.rows += 1
            audit.check(saga)
            audit.check_failed(saga, cut.rows.read(FAILED_SAGAS, self._order_id) is not None)
        elif orders.sagas:
            self.findings.add(ROW_MISSING, "the order began a saga, but there is none", ORDER_EVENTS.name, None,
                              SAGAS.name, self._order_id)  # fmt: skip
