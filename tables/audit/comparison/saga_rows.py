"""Walks over what is kept of sagas: each row against what it follows from, and each order against its rows."""

from __future__ import annotations

from domain.orders import PENDING
from engine.inspection import StoreSnapshot
from streams.topics import ORDER_EVENTS
from tables.audit.findings import ROW_MISSING, ROW_UNFOUNDED, Findings
from tables.audit.folds.orders import OrderEntry, OrderFold
from tables.audit.folds.sagas import SagaAudit
from tables.audit.pace import Pace
from tables.audit.walk import walk
from tables.sagas import FAILED_SAGAS, SAGA_COUNTS, SAGAS
from tables.sagas.choreography import DEADLINES

_TOPIC = ORDER_EVENTS.name


async def compare_sagas(
    rows: StoreSnapshot, audit: SagaAudit, orders: OrderFold, findings: Findings, pace: Pace
) -> None:
    """Hold every saga, the counts and lists of sagas, and the deadlines of choreographed orders against the orders."""
    failed = 0
    async for _, raw in walk(rows, SAGAS, pace):
        findings.rows += 1
        saga = SAGAS.decode_row(raw)
        audit.check(saga)
        is_listed = rows.read(FAILED_SAGAS, saga.order_id) is not None
        failed += is_listed
        audit.check_failed(saga, is_listed)
    audit.check_counts(
        {key.decode(): SAGA_COUNTS.decode_row(raw).count async for key, raw in walk(rows, SAGA_COUNTS, pace)}
    )
    listed = [key.decode() async for key, _ in walk(rows, FAILED_SAGAS, pace)]
    for order_id in listed if len(listed) > failed else ():
        if rows.read(SAGAS, order_id) is None:
            findings.add(ROW_UNFOUNDED, "there is no such saga", _TOPIC, None, FAILED_SAGAS.name, order_id)
    await _check_deadlines(rows, orders, findings, pace)
    if audit.founded < orders.sagas or orders.choreographed:
        await _check_orders(rows, orders, findings, pace)


async def _check_deadlines(rows: StoreSnapshot, orders: OrderFold, findings: Findings, pace: Pace) -> None:
    """Is there a deadline of an order that waits for nothing?"""
    async for key, _ in walk(rows, DEADLINES, pace):
        findings.rows += 1
        entry = orders.entries.get(key)
        if entry is None or not _has_deadline(entry):
            offset = entry.offset if entry is not None else None
            detail = "there is a deadline, but no order that waits for it"
            findings.add(ROW_UNFOUNDED, detail, _TOPIC, offset, DEADLINES.name, key.decode())


async def _check_orders(rows: StoreSnapshot, orders: OrderFold, findings: Findings, pace: Pace) -> None:
    """Name orders without their saga, or without their deadline."""
    for key, entry in orders.entries.items():
        if entry.placed_id is not None and entry.row.saga is not None and rows.read_raw(SAGAS, key) is None:
            detail = "the order began a saga, but there is none"
            findings.add(ROW_MISSING, detail, _TOPIC, entry.offset, SAGAS.name, key.decode())
        if _has_deadline(entry) and rows.read_raw(DEADLINES, key) is None:
            detail = "the order waits for answers, but has no deadline"
            findings.add(ROW_MISSING, detail, _TOPIC, entry.offset, DEADLINES.name, key.decode())
        if pace.is_over():
            await pace.turn()


def _has_deadline(entry: OrderEntry) -> bool:
    return entry.row.saga == "choreography" and entry.row.status == PENDING
