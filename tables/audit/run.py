"""The audit of one partition: a cut, the topics folded up to it, and the rows held against what they come to."""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from streams.engine.cut import Cut, take_cut
from streams.engine.engine import Engine
from streams.engine.partition_task import PartitionTask
from streams.topics import ORDER_EVENTS
from tables.audit.comparison import compare
from tables.audit.findings import POSITION_BEYOND_END, ROW_UNFOUNDED, Findings
from tables.audit.folds import Fold
from tables.audit.ledger import Scratch
from tables.audit.orders import OrderFold
from tables.audit.pace import Pace
from tables.audit.reading import Reader, Unreadable, read_topic
from tables.orders import ORDER_HISTORY

TOPICS: Final = (ORDER_EVENTS,)
"""Topics that are kept for ever: what is missing in one of them can no longer be proven."""


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
        names = [topic.name for topic in TOPICS if topic.name in self._engine.topics]
        cut = await take_cut(self._task, self._engine.broker, names)
        try:
            self.total = sum(cut.ends.values())
            self._check_positions(cut)
            await self._audit(cut)
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

    async def _audit(self, cut: Cut) -> None:
        orders = OrderFold(cut.rows, self.findings, self._scratch)
        if await self._read(cut, ORDER_EVENTS.name, [Reader(orders.apply, cut.ends[ORDER_EVENTS.name])]):
            await self._compare(cut, ORDER_EVENTS.name, [orders])
            await self._compare_history(cut, orders)

    async def _read(self, cut: Cut, topic: str, readers: list[Reader]) -> bool:
        """Read a topic from its first record; whether that was possible."""
        start, number = cut.starts[topic], self._task.number
        self.phase = f"reading {topic}"
        if start > 0:
            self.findings.cannot_prove(f"{topic}/{number} begins at offset {start}: its oldest events were removed")
            return False
        try:
            await read_topic(self._engine, number, topic, readers, self.findings, self._pace, passed=self._passed)
        except Unreadable as error:
            self.findings.cannot_prove(str(error))
            return False
        return True

    def _passed(self, records: int) -> None:
        self.done += records

    async def _compare(self, cut: Cut, topic: str, folds: Iterable[Fold]) -> None:
        for fold in folds:
            for table, ledger in fold.ledgers.items():
                self.phase = f"comparing {table.name}"
                await compare(table, ledger, topic, cut.rows, self.findings, self._pace)

    async def _compare_history(self, cut: Cut, orders: OrderFold) -> None:
        """Is there a row of the history without its event? Those with one were compared while reading."""
        self.phase = f"comparing {ORDER_HISTORY.name}"
        count, start = 0, b""
        while found := cut.rows.rows(ORDER_HISTORY, start, 500):
            count += len(found)
            start = found[-1][0] + b"\0"
            if self._pace.is_over():
                await self._pace.turn()
        self.findings.rows += count
        if count == orders.history_rows:
            return
        start = b""
        while found := cut.rows.rows(ORDER_HISTORY, start, 200):
            for raw, _ in found:
                order_id, version = ORDER_HISTORY.key.decode(raw)
                entry = orders.entries.get(order_id.encode())
                if entry is None or version > entry.row.version:
                    self.findings.add(ROW_UNFOUNDED, "the history holds an event that the topic does not",
                                      ORDER_EVENTS.name, entry.offset if entry is not None else None,
                                      ORDER_HISTORY.name, f"{order_id}, {version}")  # fmt: skip
                if self._pace.is_over():
                    await self._pace.turn()
            start = found[-1][0] + b"\0"
