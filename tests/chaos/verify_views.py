"""Checks of tables and of the web view: they say what the events say."""

from __future__ import annotations

import json
import struct
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

from tests.chaos.ledger import Entry, Ledger, Shelf, amount
from tests.chaos.verifier import PAYMENT_EVENTS, STOCK_EVENTS

Views = Mapping[str, tuple[int, Any]]
"""Answers of the web view by path: status and body."""
SAGA_STATES = {"pending": "running", "confirmed": "completed", "cancelled": "compensated"}


def check_tables(ledger: Ledger) -> list[str]:
    """The tables of stock, reservations, payments and sagas say what the events say."""
    shelves = {product_id: _shelf(events) for product_id, events in ledger.events[STOCK_EVENTS].items()}
    rows = dict(ledger.world.table("stock"))
    stock = {
        key.decode(): Shelf(row["on_hand"], row["reserved"], row["version"], row["stocked"])
        for key, row in rows.items()
    }
    reserved = {_line_key(key): row["state"] for key, row in ledger.world.table("reservations")}
    lines = {(line.product_id, *key): line.state for key, line in ledger.lines.items()}
    paid = {key.decode(): _payment_row(row) for key, row in ledger.world.table("payments")}
    payments = {order_id: _payment(events) for order_id, events in ledger.events[PAYMENT_EVENTS].items()}
    return [
        *_differences("stock", stock, shelves),
        *_differences("reservations", reserved, lines),
        *_differences("payments", paid, payments),
        *_wrong_sagas(ledger),
    ]


def _wrong_sagas(ledger: Ledger) -> list[str]:
    sagas = {key.decode(): (row["style"], row["state"]) for key, row in ledger.world.table("sagas")}
    expected = {
        order_id: (purchase.saga, SAGA_STATES[purchase.status]) for order_id, purchase in ledger.purchases.items()
    }
    counts: Counter[str] = Counter()
    for number in ledger.world.partitions():
        for key, value in ledger.world.rows("saga-counts", number).items():
            counts[key.decode()] += json.loads(value)["count"]
    problems = _differences("sagas", sagas, expected)
    if +counts != (found := Counter(state for _, state in sagas.values())):
        problems.append(f"sagas are counted as {counts}, and are {found}")
    return problems


def check_timers(ledger: Ledger) -> list[str]:
    """Nothing is planned for sagas that have ended."""
    rows = ledger.world.rows("timers")
    return [f"timer {key!r}: {value!r}" for key, value in rows.items()]


def check_views(ledger: Ledger, views: Views) -> list[str]:
    """The web view shows what the events say."""
    problems = []
    for path, (status, body) in views.items():
        kind, _, name = path.strip("/").partition("/")
        expected = _expected_view(ledger, kind, name)
        found = None if status == 404 else {field: body.get(field) for field in expected or body}
        if status not in (200, 404) or found != expected:
            problems.append(f"{path}: {status} {found or body}, not {expected}")
    return problems


def _expected_view(ledger: Ledger, kind: str, name: str) -> dict[str, Any] | None:
    if kind == "inventory":
        shelf = _shelf(ledger.events[STOCK_EVENTS].get(name, []))
        return {
            "on_hand": shelf.on_hand,
            "reserved": shelf.reserved,
            "available": shelf.on_hand - shelf.reserved,
            "version": shelf.version,
        }
    purchase = ledger.purchases.get(name)
    if purchase is None:
        return None
    if kind == "orders":
        total = {"amount": str(purchase.total), "currency": purchase.currency}
        return {"status": purchase.status, "total": total, "version": purchase.version}
    if kind == "sagas":
        return {"state": SAGA_STATES[purchase.status]}
    events = ledger.payments(name)
    if not events:
        return None
    return {"status": _payment(events)[0], "version": len(events)}


def _shelf(events: Sequence[Entry]) -> Shelf:
    shelf = Shelf()
    for event in events:
        pieces = event.payload.get("quantity", 0)
        shelf.version = event.version or 0
        shelf.stocked |= event.type == "inventory.stocked"
        shelf.on_hand += {"inventory.stocked": pieces, "inventory.shipped": -pieces}.get(event.type, 0)
        shelf.reserved += {
            "inventory.reserved": pieces,
            "inventory.released": -pieces,
            "inventory.shipped": -pieces,
        }.get(event.type, 0)
    return shelf


def _payment(events: Sequence[Entry]) -> tuple[str, tuple[Decimal, str] | None, int]:
    states = [event.type.partition(".")[2] for event in events if event.type != "payment.refund_failed"]
    return states[-1] if states else "", amount(events[0].payload["amount"]), len(events)


def _payment_row(row: Mapping[str, Any]) -> tuple[str, tuple[Decimal, str] | None, int]:
    return row["status"], amount(row["amount"]), row["version"]


def _line_key(key: bytes) -> tuple[str, str, int]:
    """Product, order and line of a key: two texts with their lengths, four bytes."""
    start = 2 + int(struct.unpack(">H", key[:2])[0])
    return key[2:start].decode(), key[start + 2 : -4].decode(), int(struct.unpack(">I", key[-4:])[0])


def _differences(table: str, found: Mapping[Any, Any], expected: Mapping[Any, Any]) -> list[str]:
    return [
        f"{table} {key}: {found.get(key)}, not {expected.get(key)}"
        for key in found.keys() | expected.keys()
        if found.get(key) != expected.get(key)
    ]
