"""What the topics of a saga run say, decoded once: events by aggregate, commands, replies, and what became of each."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from typing import Any, NamedTuple

from tests.chaos.verifier import (
    COMMANDS,
    EVENT_TOPICS,
    EVENTS,
    PAYMENT_COMMANDS,
    PAYMENT_EVENTS,
    REPLIES,
    STOCK_COMMANDS,
    STOCK_EVENTS,
)
from tests.chaos.world import Record, World

COMMAND_TOPICS = (COMMANDS, STOCK_COMMANDS, PAYMENT_COMMANDS)
LINE_COMMANDS = {"inventory.reserve", "inventory.release", "inventory.ship"}


class Entry(NamedTuple):
    """An event, a command or a reply. Only events have a version."""

    key: str
    id: str
    type: str
    version: int | None
    cause: str | None
    timestamp: str
    payload: dict[str, Any]
    value: bytes


@dataclass
class Purchase:
    """An order as its events tell; `lines` are product and pieces, by number from 1 on."""

    order_id: str
    customer_id: str
    saga: str | None
    lines: dict[int, tuple[str, int]]
    total: Decimal
    currency: str
    status: str = "pending"
    shipped: bool = False
    version: int = 0


@dataclass
class Line:
    """A line as the events of its product tell."""

    product_id: str
    state: str = ""
    reserved: int = 0
    refusal: str | None = None
    history: list[str] = field(default_factory=list)


@dataclass
class Shelf:
    """A product as its events tell."""

    on_hand: int = 0
    reserved: int = 0
    version: int = 0
    stocked: bool = False


class Ledger:
    """Everything in the order in which it stands in its partition."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.events = {topic: _by_key(world.records(topic)) for topic in EVENT_TOPICS}
        self.commands = {topic: [entry(record) for record in world.records(topic)] for topic in COMMAND_TOPICS}
        self.replies = [entry(record) for record in world.records(REPLIES)]
        self.purchases = {
            order_id: purchase
            for order_id, events in self.events[EVENTS].items()
            if (purchase := _purchase(events)) is not None
        }
        self.lines: dict[tuple[str, int], Line] = {}
        for product_id, events in self.events[STOCK_EVENTS].items():
            for event in events:
                _follow_line(self.lines, product_id, event)

    def payments(self, order_id: str) -> list[Entry]:
        """The events of an order's payment."""
        return self.events[PAYMENT_EVENTS].get(order_id, [])

    def lines_of(self, order_id: str) -> dict[int, Line]:
        """What became of an order's lines, as far as anything did."""
        numbers = self.purchases[order_id].lines
        return {number: self.lines[order_id, number] for number in numbers if (order_id, number) in self.lines}


def entry(record: Record) -> Entry:
    """Decode a record."""
    body = record.body
    return Entry(
        record.key.decode(),
        body["eventId"],
        body["eventType"],
        body.get("aggregateVersion"),
        body["metadata"]["causationId"],
        body["timestamp"],
        body["payload"],
        record.value or b"",
    )


def amount(money: dict[str, str] | None) -> tuple[Decimal, str] | None:
    """An amount and its currency."""
    return None if money is None else (Decimal(money["amount"]), money["currency"])


def _by_key(records: Sequence[Record]) -> dict[str, list[Entry]]:
    found = defaultdict(list)
    for record in records:
        found[record.key.decode()].append(entry(record))
    return dict(found)


def _purchase(events: Sequence[Entry]) -> Purchase | None:
    """Fold an order's events; None when nothing was placed."""
    purchase: Purchase | None = None
    for event in events:
        payload = event.payload
        if event.type == "order.placed":
            items = payload["items"]
            purchase = Purchase(
                event.key,
                payload["customerId"],
                payload.get("saga"),
                {number: (item["productId"], item["quantity"]) for number, item in enumerate(items, start=1)},
                sum((item["quantity"] * Decimal(item["price"]["amount"]) for item in items), Decimal(0)),
                items[0]["price"]["currency"],
            )
        if purchase is not None:
            purchase.version = event.version or 0
            if event.type in ("order.confirmed", "order.cancelled"):
                purchase.status = event.type.partition(".")[2]
            purchase.shipped |= event.type == "order.shipped"
    return purchase


def _follow_line(lines: dict[tuple[str, int], Line], product_id: str, event: Entry) -> None:
    payload = event.payload
    if "line" not in payload:
        return
    line = lines.setdefault((payload["orderId"], payload["line"]), Line(product_id))
    line.history.append(event.type)
    if event.type == "inventory.reserved":
        line.state, line.reserved = "reserved", payload["quantity"]
    elif event.type == "inventory.reservation_failed":
        line.state, line.refusal = line.state or "failed", payload["reason"]
    elif event.type in ("inventory.released", "inventory.shipped"):
        line.state = event.type.partition(".")[2]
