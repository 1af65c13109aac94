"""The audit of one partition: a cut, the topics folded up to it, and the rows held against what they come to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from engine.inspection import Cut, Engine, PartitionTask, take_cut
from streams.topics import CUSTOMER_ORDER_EVENTS, INVENTORY_EVENTS, ORDER_EVENTS, PAYMENT_EVENTS, SAGA_REPLIES
from tables.audit.comparison import compare
from tables.audit.comparison.history import compare_history
from tables.audit.comparison.saga_rows import compare_sagas
from tables.audit.findings import POSITION_BEYOND_END, Findings
from tables.audit.folds import Fold
from tables.audit.folds.analytics import AnalyticsFold, OrderSumsFold, PaymentSumsFold, StockSumsFold
from tables.audit.folds.customers import CustomerFold, CustomerOrderFold, SummaryCheck
from tables.audit.folds.order_index import OrderIndexFold
from tables.audit.folds.orders import OrderFold
from tables.audit.folds.payments import PaymentFold
from tables.audit.folds.sagas import ReplyFold, SagaAudit
from tables.audit.folds.stock import StockFold
from tables.audit.ledger import Scratch
from tables.audit.pace import Pace
from tables.audit.reading import Reader, Unreadable, read_topic
from tables.audit.unsettled import unsettled_of

TOPICS: Final = (ORDER_EVENTS, INVENTORY_EVENTS, PAYMENT_EVENTS, CUSTOMER_ORDER_EVENTS, SAGA_REPLIES)


class AuditRun:
    """One audit of one partition; `phase` says what it is at, `done` of `total` how far."""

    def __init__(self, engine: Engine, task: PartitionTask, scratch_folder: Path) -> None:
        self.id = str(uuid.uuid4())
        self.started_ms = int(time.time() * 1000)
        self.findings = Findings(task.number)
        self.phase = "waiting"
        self.done = 0
        self.total = 0
        self._engine = engine
        self._task = task
        self._pace = Pace(engine)
        self._scratch = Scratch(scratch_folder / f"audit-{task.number}")

    async def run(self) -> None:
        """Audit the partition; raises TransportError and InfrastructureError when it cannot be cut."""
        self.phase = "cutting"
        cut = await take_cut(self._task, self._engine.broker, [topic.name for topic in TOPICS])
        try:
            self.total = sum(cut.ends[name] - cut.starts[name] for name in cut.ends)
            self._check_positions(cut)
            orders = await self._audit_orders(cut)
            await self._audit_stock(cut)
            payments = await self._audit_payments(cut)
            await self._audit_customers(cut)
            if orders is not None:
                await self._audit_sagas(cut, orders, payments)
        finally:
            cut.rows.close()
            self._scratch.remove()

    def _check_positions(self, cut: Cut) -> None:
        """Is any agent beyond the end of its topic?"""
        for agent, topic in self._engine.agents.items():
            if topic.name not in cut.ends:
                continue
            position, end = cut.position(agent, topic.name), cut.ends[topic.name]
            if position > end:
                detail = f"{agent} is at offset {position}, which is beyond the end {end}"
                self.findings.add(POSITION_BEYOND_END, detail, topic.name, position)

    async def _audit_orders(self, cut: Cut) -> OrderFold | None:
        topic, scratch = ORDER_EVENTS.name, self._scratch
        orders = OrderFold(cut.rows, self.findings, scratch)
        projections: dict[str, Fold] = {
            "project-analytics": AnalyticsFold(orders, scratch),
            "reconcile-orders": OrderSumsFold(orders, scratch),
            "index-orders": OrderIndexFold(scratch),
        }
        if not await self._read(cut, topic, orders, projections):
            return None
        await self._compare(cut, topic, [orders, *projections.values()])
        self.phase = "comparing order-history"
        await compare_history(cut.rows, orders, self.findings, self._pace)
        return orders

    async def _audit_stock(self, cut: Cut) -> None:
        stock = StockFold(self.findings, self._scratch)
        projections: dict[str, Fold] = {"reconcile-stock": StockSumsFold(self._scratch)}
        if await self._read(cut, INVENTORY_EVENTS.name, stock, projections):
            await self._compare(cut, INVENTORY_EVENTS.name, [stock, *projections.values()])

    async def _audit_payments(self, cut: Cut) -> PaymentFold | None:
        payments = PaymentFold(self.findings, self._scratch)
        projections: dict[str, Fold] = {"reconcile-payments": PaymentSumsFold(self._scratch)}
        if not await self._read(cut, PAYMENT_EVENTS.name, payments, projections):
            return None
        await self._compare(cut, PAYMENT_EVENTS.name, [payments, *projections.values()])
        return payments

    async def _audit_customers(self, cut: Cut) -> None:
        topic = CUSTOMER_ORDER_EVENTS.name
        projections: dict[str, Fold] = {
            "project-customer-orders": CustomerOrderFold(self._scratch),
            "project-customers": CustomerFold(self._scratch),
        }
        if await self._read(cut, topic, SummaryCheck(self.findings, self._scratch), projections):
            await self._compare(cut, topic, list(projections.values()))

    async def _audit_sagas(self, cut: Cut, orders: OrderFold, payments: PaymentFold | None) -> None:
        topic, replies = SAGA_REPLIES.name, ReplyFold(orders, self._scratch)
        reader = await self._reader_of(cut, topic, "take-replies", replies)
        is_complete = cut.starts[topic] == 0  # answers are not kept for ever
        if await self._read_all(cut, topic, [reader], cut.starts[topic]):
            self.phase = "comparing sagas"
            audit = SagaAudit(orders, payments, replies, is_complete, self.findings)
            await compare_sagas(cut.rows, audit, orders, self.findings, self._pace)

    async def _read(self, cut: Cut, topic: str, fold: Fold | SummaryCheck, projections: dict[str, Fold]) -> bool:
        """Read a topic from its first record on: all of it into one fold, and as far as each agent is into others."""
        start = cut.starts[topic]
        if start > 0:
            place = f"{topic}/{self._task.number}"
            self.findings.cannot_prove(f"{place} begins at offset {start}: its oldest events were removed")
            return False
        readers = [Reader(fold.apply, cut.ends[topic])]
        readers += [await self._reader_of(cut, topic, agent, made) for agent, made in projections.items()]
        return await self._read_all(cut, topic, readers, 0)

    async def _reader_of(self, cut: Cut, topic: str, agent: str, fold: Fold | ReplyFold) -> Reader:
        unsettled = await unsettled_of(cut.rows, agent, topic, self._pace)
        return Reader(fold.apply, min(cut.position(agent, topic), cut.ends[topic]), unsettled)

    async def _read_all(self, cut: Cut, topic: str, readers: Sequence[Reader], start: int) -> bool:
        self.phase = f"reading {topic}"
        try:
            await read_topic(
                self._engine,
                self._task.number,
                topic,
                readers,
                self.findings,
                self._pace,
                passed=self._passed,
                start=start,
            )
        except Unreadable as error:
            self.findings.cannot_prove(str(error))
            return False
        return True

    def _passed(self, records: int) -> None:
        self.done += records

    async def _compare(self, cut: Cut, topic: str, folds: Sequence[Fold]) -> None:
        for fold in folds:
            for table, ledger in fold.ledgers.items():
                self.phase = f"comparing {table.name}"
                await compare(table, ledger, topic, cut.rows, self.findings, self._pace)
