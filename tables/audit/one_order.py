"""The audit of one order: its rows held against its events."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from streams.engine.cut import Cut, take_cut
from streams.engine.engine import Engine
from streams.engine.partition_task import PartitionTask
from streams.engine.table import AnyTable, encode_prefix
from streams.topics import ORDER_EVENTS
from tables.audit.comparison import compare_row, key_text
from tables.audit.findings import ROW_MISSING, ROW_UNFOUNDED, Findings
from tables.audit.folds import Fold
from tables.audit.ledger import Scratch
from tables.audit.orders import OrderFold
from tables.audit.pace import Pace
from tables.audit.reading import Reader, Unreadable, read_topic
from tables.orders import ORDER_HISTORY, ORDERS

HISTORY_ROWS_MAX = 100_000


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
        cut = await take_cut(self._task, self._engine.broker, [ORDER_EVENTS.name])
        scratch = Scratch(Path())  # nothing of one order ever needs it
        try:
            orders = OrderFold(cut.rows, self.findings, scratch)
            if await self._read(cut, ORDER_EVENTS.name, [Reader(orders.apply, cut.ends[ORDER_EVENTS.name])]):
                self._compare(cut, ORDER_EVENTS.name, [orders], {ORDERS: self._key})
                self._compare_history(cut, orders)
        finally:
            cut.rows.close()

    async def _read(self, cut: Cut, topic: str, readers: list[Reader]) -> bool:
        number = self._task.number
        if cut.starts[topic] > 0:
            self.findings.cannot_prove(
                f"{topic}/{number} begins at offset {cut.starts[topic]}: its oldest events were removed"
            )
            return False
        try:
            await read_topic(self._engine, number, topic, readers, self.findings, self._pace, self._key)
        except Unreadable as error:
            self.findings.cannot_prove(str(error))
            return False
        return True

    def _compare(self, cut: Cut, topic: str, folds: Iterable[Fold], own: dict[AnyTable, bytes]) -> None:
        """Hold entries against rows; `own` are the keys under which there must be no row without an entry."""
        for fold in folds:
            for table, ledger in fold.ledgers.items():
                for key, entry in ledger.items():
                    raw = cut.rows.read_raw(table, key)
                    if raw is None:
                        self.findings.add(ROW_MISSING, "events lead to a row, but there is none", topic, entry.offset,
                                          table.name, key_text(table, key))  # fmt: skip
                        continue
                    self.findings.rows += 1
                    compare_row(table, key, raw, entry.row, topic, entry.offset, self.findings)
                if table in own and not len(ledger) and cut.rows.read_raw(table, own[table]) is not None:
                    self.findings.rows += 1
                    self.findings.add(ROW_UNFOUNDED, "there is a row, but no event that leads to it", topic, None,
                                      table.name, key_text(table, own[table]))  # fmt: skip

    def _compare_history(self, cut: Cut, orders: OrderFold) -> None:
        """Is there a row of the order's history without its event?"""
        entry = orders.entries.get(self._key)
        last = entry.row.version if entry is not None else 0
        prefix = encode_prefix(self._order_id)
        for raw, _ in cut.rows.rows(ORDER_HISTORY, prefix, HISTORY_ROWS_MAX, prefix):
            self.findings.rows += 1
            if ORDER_HISTORY.key.decode(raw)[1] > last:
                self.findings.add(ROW_UNFOUNDED, "the history holds an event that the topic does not",
                                  ORDER_EVENTS.name, None, ORDER_HISTORY.name,
                                  key_text(ORDER_HISTORY, raw))  # fmt: skip
