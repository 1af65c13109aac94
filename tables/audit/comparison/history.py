"""The history of orders: rows of it without their event; those with one are compared while the topic is read."""

from __future__ import annotations

from engine.inspection import StoreSnapshot
from streams.topics import ORDER_EVENTS
from tables.audit.findings import ROW_UNFOUNDED, Findings
from tables.audit.folds.orders import OrderFold
from tables.audit.pace import Pace
from tables.audit.walk import walk
from tables.orders import ORDER_HISTORY


async def compare_history(rows: StoreSnapshot, orders: OrderFold, findings: Findings, pace: Pace) -> None:
    """Name rows of the history that no event stands for; counting them is enough where there are none."""
    count = 0
    async for _ in walk(rows, ORDER_HISTORY, pace):
        count += 1
    findings.rows += count
    if count > orders.history_rows:
        async for raw, _ in walk(rows, ORDER_HISTORY, pace):
            check_row(raw, orders, findings)


def check_row(raw: bytes, orders: OrderFold, findings: Findings) -> None:
    """Is there an event of this version of the order?"""
    order_id, version = ORDER_HISTORY.key.decode(raw)
    entry = orders.entries.get(order_id.encode())
    if entry is None or version > entry.row.version:
        offset = entry.offset if entry is not None else None
        findings.add(ROW_UNFOUNDED, "the history holds an event that the topic does not", ORDER_EVENTS.name, offset,
                     ORDER_HISTORY.name, f"{order_id}, {version}")  # fmt: skip
