"""The summaries of one order: each of its events is passed on once to its customer's partition, wherever that is."""

from __future__ import annotations

from typing import Any

from engine import Envelope, Record, derived_id
from engine.inspection import Engine
from streams.topics import CUSTOMER_ORDER_EVENTS
from tables.audit.findings import EVENT_MISSING, EVENT_UNFOUNDED, Findings
from tables.audit.folds.orders import OrderFold
from tables.audit.pace import Pace
from tables.audit.reading import Reader, read_topic


class SummaryAudit:
    """Notes which summaries the events of an order lead to, and looks for them in the topic."""

    def __init__(self, orders: OrderFold, order_id: str, findings: Findings) -> None:
        self._orders = orders
        self._order_id = order_id
        self._findings = findings
        self._expected: dict[str, Record] = {}  # the event that leads to a summary, by the summary's id
        self._found: dict[str, tuple[int, int]] = {}  # offset and version of summaries, by id

    def expect(self, record: Record, event: Envelope[Any]) -> None:
        """Take the next event of the order in, once the fold has it: each since it was placed is passed on."""
        entry = self._orders.entries.get(self._order_id.encode())
        if entry is not None and entry.row.total is not None:
            self._expected[derived_id(event.event_id, "summary")] = record

    async def look(self, engine: Engine, topic: str, pace: Pace) -> None:
        """Read the summaries of the order's customer, and name what is missing or has no event.

        Call it after the cut, so that what was committed before is there. Raises Unreadable.
        """
        entry = self._orders.entries.get(self._order_id.encode())
        if entry is None or entry.row.customer_id is None or not self._expected:
            return
        customer = entry.row.customer_id.encode()
        number, name = engine.partition_for(customer), CUSTOMER_ORDER_EVENTS.name
        reader = Reader(self._note, await engine.broker.end_offset(name, number))
        await read_topic(engine, number, name, [reader], self._findings, pace, customer)
        for summary_id, record in self._expected.items():
            if summary_id not in self._found:
                detail = (
                    f"the event {topic}/{self._findings.partition}@{record.offset} was not passed on to its customer"
                )
                self._findings.add(EVENT_MISSING, detail, name, partition=number)
        for summary_id, (offset, version) in self._found.items():
            if summary_id not in self._expected and version <= entry.row.version:
                detail = f"summary {version} of order {self._order_id} has no event that it follows from"
                self._findings.add(EVENT_UNFOUNDED, detail, name, offset, partition=number)

    def _note(self, record: Record, event: Envelope[Any]) -> None:
        if event.aggregate_id == self._order_id:
            self._found[event.event_id] = record.offset, int(event.aggregate_version or 0)
