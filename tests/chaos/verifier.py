"""Does what is in the topics and tables agree with what the clients were promised, and with itself?

Nothing here uses the services' own code: the rules are written a second time. Every check looks at one `World` and
returns a list of problems, empty when all is well; `CHECKS` are all that hold once everything is processed.
"""

from __future__ import annotations

import json
import struct
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from typing import Any

from tests.chaos.orders import CURRENCY, REJECTED, Order
from tests.chaos.world import Rows, World

COMMANDS, REQUESTS, EVENTS = "order-commands", "order-requests", "order-events"
SUMMARIES, INTEGRATION, DEAD_LETTERS = "customer-order-events", "integration-events", "dead-letters"
STOCK_EVENTS, PAYMENT_EVENTS, REPLIES = "inventory-events", "payment-events", "saga-replies"
STOCK_COMMANDS, PAYMENT_COMMANDS, NOTIFICATIONS = "inventory-commands", "payment-commands", "notification-commands"
EVENT_TOPICS = (EVENTS, STOCK_EVENTS, PAYMENT_EVENTS)
# What is told to other systems, of the types in EVENT_TOPICS.
PUBLISHED = {
    *(f"order.{name}" for name in ("placed", "confirmed", "cancelled", "rejected")),
    *(f"inventory.{name}" for name in ("reserved", "reservation_failed", "released")),
    *(f"payment.{name}" for name in ("received", "failed", "refunded")),
}
# Who reads what: each has to reach the end of its topic in every partition. Others than these have to as well, once
# they have a position anywhere.
CONSUMERS = {
    COMMANDS: "decide-orders",
    SUMMARIES: "project-customer-orders",
    REQUESTS: "accept-requests",
    STOCK_COMMANDS: "decide-stock",
    PAYMENT_COMMANDS: "decide-payments",
    REPLIES: "take-replies",
    NOTIFICATIONS: "send-notifications",
}

Check = Callable[[World], list[str]]


@dataclass
class Folded:
    """An order as its events tell; `total` is the sum of quantity x price."""

    customer_id: str | None = None
    email: str | None = None
    status: str = "unknown"
    item_count: int = 0
    total: Decimal | None = None
    created_at: datetime | None = None
    confirmed_at: datetime | None = None
    cancelled_at: datetime | None = None
    version: int = 0

    def apply(self, event: Mapping[str, Any]) -> None:
        """Take the next event in."""
        kind, payload, time = event["eventType"], event["payload"], _time(event["timestamp"])
        self.version += 1
        if kind == "order.placed":
            self.status, self.created_at = "pending", time
            self.customer_id, self.email = payload["customerId"], payload["email"]
            self.item_count = sum(item["quantity"] for item in payload["items"])
            self.total = sum(
                (item["quantity"] * Decimal(item["price"]["amount"]) for item in payload["items"]), Decimal(0)
            )
        elif kind == "order.confirmed":
            self.status, self.confirmed_at = "confirmed", time
        elif kind == "order.cancelled":
            self.status, self.cancelled_at = "cancelled", time
        elif kind == REJECTED and payload["command"] == "order.place" and self.status == "unknown":
            self.status, self.customer_id = "rejected", payload["customerId"]

    def differs(self, row: Mapping[str, Any]) -> str:
        """How a table's row differs, empty when it does not."""
        expected = {
            "customer_id": self.customer_id,
            "status": self.status,
            "item_count": self.item_count,
            "total": None if self.total is None else (self.total, CURRENCY),
            "created_at": self.created_at,
            "confirmed_at": self.confirmed_at,
            "cancelled_at": self.cancelled_at,
            "version": self.version,
        }
        total = row["total"]
        found = {name: row[name] for name in expected} | {
            "total": None if total is None else (Decimal(total["amount"]), total["currency"]),
            **{name: _time(row[name]) for name in ("created_at", "confirmed_at", "cancelled_at")},
        }
        return ", ".join(
            f"{name} is {found[name]}, not {value}" for name, value in expected.items() if found[name] != value
        )


# ---- what the clients were promised


def check_promises(world: World) -> list[str]:
    """Every acknowledged command had its effect, once, in the order asked; nothing else happened to any order."""
    history, problems = _by_order(world), []
    placed_as = defaultdict(set)
    for order_id, events in history.items():
        for event in events:
            if event["eventType"] == "order.placed":
                placed_as[event["payload"]["email"]].add(order_id)
    for order in world.orders:
        events = history.pop(order.order_id or "", [])
        if len(placed_as[order.email]) > 1:
            problems.append(f"order {order.ref} was placed under {sorted(placed_as[order.email])}")
        problems += _broken_promise(order, events)
    problems += [
        f"order {order_id}, which nobody asked for, has {len(events)} events" for order_id, events in history.items()
    ]
    return problems


def _broken_promise(order: Order, events: Sequence[Mapping[str, Any]]) -> list[str]:
    promised = [step for step in order.steps if step.acknowledged]
    expected = [(step.event_type, None if order.over_http else step.command_id) for step in promised]
    found = [(event["eventType"], None if order.over_http else event["metadata"]["causationId"]) for event in events]
    if found != expected:
        return [f"order {order.ref} ({order.order_id}): expected {expected}, found {found}"]
    if not events:
        return []
    folded = _fold(events)
    if folded.total is not None and (folded.email, folded.customer_id, folded.total) != (
        order.email,
        order.customer_id,
        order.total,
    ):
        return [f"order {order.ref} ({order.order_id}): asked for {order}, placed {folded}"]
    asked, happened = [step.asked_at for step in promised], [_time(event["timestamp"]) for event in events]
    return [] if asked == happened else [f"order {order.ref}: asked at {asked}, happened at {happened}"]


def count_broken(world: World) -> tuple[int, int]:
    """How many promised effects are missing, and how many there are that were not promised (or too often)."""
    happened = Counter((r.key.decode(), r.body["eventType"]) for r in world.records(EVENTS))
    promised = Counter(
        (order.order_id or order.ref, step.event_type)
        for order in world.orders
        for step in order.steps
        if step.acknowledged
    )
    return (promised - happened).total(), (happened - promised).total()


def check_commands(world: World) -> list[str]:
    """Every command id in the topic caused one event, and is marked as handled."""
    asked = {record.body["eventId"] for record in world.records(COMMANDS)}
    caused = Counter(record.body["metadata"]["causationId"] for record in world.records(EVENTS))
    handled = {key.decode() for key in world.rows("handled-commands")}
    problems = [f"command {command} was never handled (lost)" for command in asked - caused.keys()]
    problems += [f"command {command} took effect {n} times" for command, n in caused.items() if n > 1]
    problems += [f"event of command {command}, which is in no topic" for command in caused.keys() - asked]
    problems += [f"command {command} is marked as handled wrongly, or not" for command in asked ^ handled]
    return problems


def check_requests(world: World) -> list[str]:
    """Each Idempotency-Key was let through once: one row, one command."""
    keys = {record.key for record in world.records(REQUESTS)}
    rows = world.rows("order-requests")
    ids = [json.loads(row)["command_id"] for row in rows.values()]
    commands = Counter(record.body["eventId"] for record in world.records(COMMANDS))
    problems = [f"request {key!r} has no row, or a row no request" for key in keys ^ rows.keys()]
    return problems + [f"request's command {command} is there {commands[command]} times" for command in ids
                       if commands[command] != 1]  # fmt: skip


# ---- what the topics say


def check_versions(world: World) -> list[str]:
    """Events of each aggregate are numbered 1, 2, 3... as they stand in one partition; no event id comes twice."""
    problems = []
    for topic in EVENT_TOPICS:
        ids: Counter[str] = Counter()
        partitions = defaultdict(set)
        versions = defaultdict(list)
        for record in world.records(topic):
            body, key = record.body, record.key.decode()
            ids[body["eventId"]] += 1
            partitions[key].add(record.partition)
            versions[key].append(body["aggregateVersion"])
            if key != body["aggregateId"]:
                problems.append(f"event {body['eventId']} of {topic} has the key {key}")
        problems += [f"event {event_id} is {n} times in {topic}" for event_id, n in ids.items() if n > 1]
        problems += [
            f"{key} is in partitions {numbers} of {topic}" for key, numbers in partitions.items() if len(numbers) > 1
        ]
        problems += [
            f"{key} has a gap in {topic}: its versions are {found}"
            for key, found in versions.items()
            if found != list(range(1, len(found) + 1))
        ]
    return problems


def check_integration_events(world: World) -> list[str]:
    """There is one integration event for each event that others are told of, in the order of its aggregate."""
    published: defaultdict[tuple[str, bytes], list[tuple[str, str]]] = defaultdict(list)
    for record in world.records(INTEGRATION):
        body = record.body
        context = str(body["event_type"]).partition(".")[0]
        published[context, record.key].append((body["event_id"], body["event_type"]))
    happened: defaultdict[tuple[str, bytes], list[tuple[str, str]]] = defaultdict(list)
    for topic in EVENT_TOPICS:
        for record in world.records(topic):
            body = record.body
            if body["eventType"] in PUBLISHED:
                context = str(body["eventType"]).partition(".")[0]
                happened[context, record.key].append((body["eventId"], body["eventType"]))
    return [
        f"{context} {key.decode()}: published {published.get((context, key))}, happened {happened.get((context, key))}"
        for context, key in published.keys() | happened.keys()
        if published.get((context, key)) != happened.get((context, key))
    ]


def check_summaries(world: World) -> list[str]:
    """Each event of a placed order was passed on to its customer's list once, in the order's order."""
    passed_on = defaultdict(list)
    for record in world.records(SUMMARIES):
        body = record.body
        if record.key.decode() != body["payload"]["customerId"]:
            return [f"summary {body['eventId']} has the key {record.key!r}"]
        passed_on[body["aggregateId"]].append(body["metadata"]["causationId"])
    problems = []
    for order_id, events in _by_order(world).items():
        placed = [n for n, event in enumerate(events) if event["eventType"] == "order.placed"]
        expected = [event["eventId"] for event in events[placed[0] :]] if placed else []
        found = passed_on.pop(order_id, [])
        if found != expected:
            problems.append(f"order {order_id}: summaries of {found}, events {expected}")
    return problems + [f"summaries of order {order_id}, which has no events" for order_id in passed_on]


def check_dead_letters(world: World) -> list[str]:
    """Nothing could not be processed."""
    return [f"dead letter: {record.key!r} {record.value!r}" for record in world.records(DEAD_LETTERS)]


# ---- what the tables say


def check_orders_table(world: World) -> list[str]:
    """The table `orders` equals a fold of `order-events`."""
    rows = {key.decode(): row for key, row in world.table("orders")}
    problems = []
    for order_id, events in _by_order(world).items():
        row = rows.pop(order_id, None)
        difference = "it is missing" if row is None else _fold(events).differs(row)
        if difference:
            problems.append(f"row of order {order_id}: {difference}")
    return problems + [f"row of order {order_id}, which has no events" for order_id in rows]


def check_customer_orders(world: World) -> list[str]:
    """The table `customer-orders` equals a fold of `order-events`, each order once, under its customer."""
    rows: dict[str, Mapping[str, Any]] = {}
    problems = []
    for key, row in world.table("customer-orders"):
        customer_id, order_id = _customer_key(key)
        if order_id in rows or (customer_id, order_id) != (row["customer_id"], row["order_id"]):
            problems.append(f"order {order_id} is listed twice, or in a list where it does not belong: {key!r}")
        rows[order_id] = row
    for order_id, events in _by_order(world).items():
        folded = _fold(events)
        if folded.total is None:
            continue
        listed = rows.pop(order_id, None)
        difference = "it is missing" if listed is None else folded.differs(listed)
        if difference:
            problems.append(f"order {order_id} in its customer's list: {difference}")
    return problems + [f"order {order_id} is in a list, but was not placed" for order_id in rows]


def check_history(world: World) -> list[str]:
    """The audit trail holds each order's events as they were published, byte for byte."""
    history: dict[str, dict[int, bytes]] = defaultdict(dict)
    for key, value in world.rows("order-history").items():
        history[key[2:-8].decode()][struct.unpack(">Q", key[-8:])[0]] = value
    published: dict[str, dict[int, bytes]] = defaultdict(dict)
    for record in world.records(EVENTS):
        published[record.key.decode()][record.body["aggregateVersion"]] = record.value or b""
    wrong = {
        order_id for order_id in history.keys() | published.keys() if history.get(order_id) != published.get(order_id)
    }
    return [f"the audit trail of order {order_id} differs from its events" for order_id in sorted(wrong)]


def check_positions(world: World) -> list[str]:
    """Every agent has passed the last record of its topic, and nobody is beyond the end."""
    positions = world.positions()
    agents = set(CONSUMERS.items()) | {(topic, agent) for topic, agent, _ in positions}
    problems = []
    for topic, agent in sorted(agents):
        for number, last in world.last_offsets(topic).items():
            found = positions.get((topic, agent, number), 0)
            if found <= last:
                problems.append(f"{agent} is at {found} of {topic}/{number}, which has a record at {last}")
    for (topic, agent, number), found in positions.items():
        if found > world.ends[topic, number]:
            problems.append(f"{agent} is at {found} of {topic}/{number}, which ends at {world.ends[topic, number]}")
    return problems


def check_stores(world: World, stores: Mapping[int, Mapping[str, Rows]], whose: str) -> list[str]:
    """The stores of all partitions hold, byte for byte, what the changelogs say."""
    problems = []
    for number in world.partitions():
        if number not in stores:
            problems.append(f"nobody has a store of partition {number} ({whose})")
            continue
        for table in world.tables():
            expected, found = world.rows(table, number), stores[number].get(table, {})
            wrong = [key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)]
            problems += [
                f"{whose} {table}/{number} {key!r}: {found.get(key)!r}, changelog {expected.get(key)!r}"
                for key in wrong
            ]
    return problems


CHECKS: Sequence[Check] = (
    check_promises,
    check_commands,
    check_requests,
    check_versions,
    check_integration_events,
    check_summaries,
    check_dead_letters,
    check_orders_table,
    check_customer_orders,
    check_history,
    check_positions,
)


def find_problems(world: World) -> dict[str, list[str]]:
    """What every check found, by its name; checks without problems are left out."""
    return {check.__name__: found for check in CHECKS if (found := check(world))}


def _by_order(world: World) -> dict[str, list[dict[str, Any]]]:
    """Events of each order in the topic's order."""
    history: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in world.records(EVENTS):
        history[record.key.decode()].append(record.body)
    return dict(history)


def _fold(events: Sequence[Mapping[str, Any]]) -> Folded:
    folded = Folded()
    for event in events:
        folded.apply(event)
    return folded


def _customer_key(key: bytes) -> tuple[str, str]:
    """Customer and order of a key: length, customer, 8 bytes of age, order."""
    start = 2 + int(struct.unpack(">H", key[:2])[0])
    return key[2:start].decode(), key[start + 8 :].decode()


def _time(text: str | None) -> datetime | None:
    return None if text is None else datetime.fromisoformat(text)
