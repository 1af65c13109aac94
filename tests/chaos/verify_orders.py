"""Checks of orders: what customers asked for happened once, and every order came to a proper end."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from tests.chaos.ledger import Entry, Ledger, Line, Purchase, amount
from tests.chaos.orders import COMMAND_TYPES, CURRENCY, PLACE, Order, Step
from tests.chaos.verifier import COMMANDS, EVENTS

TIMED_OUT = "timed_out"
# What each command of an order may come to; a refusal has to fit the order's state (see `check_histories`).
OUTCOMES = {
    "order.place": {"order.placed"},
    "order.cancel": {"order.cancelled", "order.rejected"},
    "order.ship": {"order.shipped", "order.rejected"},
    "order.confirm": {"order.rejected"},
}


def check_outcomes(ledger: Ledger) -> list[str]:
    """Every order ended: confirmed with all of its stock and money, or cancelled with nothing of either."""
    problems = []
    for order_id, purchase in ledger.purchases.items():
        lines, payments = ledger.lines_of(order_id), {event.type for event in ledger.payments(order_id)}
        if purchase.status == "confirmed":
            found = _not_confirmed(purchase, lines, payments)
        elif purchase.status == "cancelled":
            found = _not_cancelled(lines, payments)
        else:
            found = ["it did not end"]
        problems += [f"order {order_id} is {purchase.status}, but {problem}" for problem in found]
    strangers = {order_id for order_id, _ in ledger.lines} - ledger.purchases.keys()
    return problems + [f"order {order_id} was never placed and has stock" for order_id in strangers]


def _not_confirmed(purchase: Purchase, lines: Mapping[int, Line], payments: set[str]) -> list[str]:
    wanted = "shipped" if purchase.shipped else "reserved"
    expected = {number: (product, pieces, wanted) for number, (product, pieces) in purchase.lines.items()}
    found = {number: (line.product_id, line.reserved, line.state) for number, line in lines.items()}
    problems = [f"its lines are {found}, not {expected}"] if found != expected else []
    return problems + ([f"its payment has {payments}"] if payments != {"payment.received"} else [])


def _not_cancelled(lines: Mapping[int, Line], payments: set[str]) -> list[str]:
    held = [number for number, line in lines.items() if line.state in ("reserved", "shipped")]
    problems = [f"its lines {held} were not released"] if held else []
    if "payment.received" in payments and "payment.refunded" not in payments:
        problems.append("its money was not given back")
    return problems


def check_histories(ledger: Ledger) -> list[str]:
    """Orders go from pending to confirmed or cancelled, are shipped or cancelled then, and refuse what does not fit."""
    return [
        f"order {order_id}: {problem} in {[(event.type, event.payload.get('reason')) for event in events]}"
        for order_id, events in ledger.events[EVENTS].items()
        if (problem := _illegal(events))
    ]


# The states in which an event may come, and in which a command may be refused.
_MOVES = {
    "order.placed": ("unknown",),
    "order.confirmed": ("pending",),
    "order.cancelled": ("pending", "confirmed"),
    "order.shipped": ("confirmed",),
}
_REFUSALS = {
    "order.place": ("pending", "confirmed", "cancelled", "shipped"),
    "order.confirm": ("unknown", "pending", "confirmed", "cancelled", "shipped"),
    "order.cancel": ("unknown", "cancelled", "shipped"),
    "order.ship": ("unknown", "pending", "cancelled", "shipped"),
}


def _illegal(events: Sequence[Entry]) -> str:
    state = "unknown"
    for event in events:
        if event.type == "order.rejected":
            if state not in _REFUSALS[event.payload["command"]]:
                return f"{event.payload['command']} was refused while it was {state}"
        elif state not in _MOVES[event.type]:
            return f"{event.type} while it was {state}"
        else:
            state = "pending" if event.type == "order.placed" else event.type.partition(".")[2]
    return ""


def check_reasons(ledger: Ledger) -> list[str]:
    """Orders that no customer cancelled were cancelled for stock or money that was refused, or for the time."""
    asked = {command.id for command in ledger.commands[COMMANDS]}
    problems = []
    for order_id, events in ledger.events[EVENTS].items():
        if order_id not in ledger.purchases:
            continue
        reasons = {line.refusal for line in ledger.lines_of(order_id).values()} - {None}
        reasons |= {event.payload["reason"] for event in ledger.payments(order_id) if event.type == "payment.failed"}
        problems += [
            f"order {order_id} was cancelled for {event.payload['reason']}, refused was {reasons}"
            for event in events
            if event.type == "order.cancelled"
            and event.cause not in asked
            and event.payload["reason"] not in reasons | {TIMED_OUT}
        ]
    return problems


def check_purchases(ledger: Ledger, orders: Sequence[Order]) -> list[str]:
    """Every acknowledged command of a customer had its effect, once; the rest is the saga's; nobody else orders."""
    placed_as = defaultdict(set)
    for order_id, events in ledger.events[EVENTS].items():
        for event in events:
            if event.type == "order.placed":
                placed_as[event.payload["email"]].add(order_id)
    problems = []
    for order in orders:
        if len(placed_as[order.email]) > 1:
            problems.append(f"order {order.ref} was placed under {sorted(placed_as[order.email])}")
        events = ledger.events[EVENTS].get(order.order_id or "", [])
        problems += [f"order {order.ref} ({order.order_id}): {problem}" for problem in _broken_promises(order, events)]
    strangers = ledger.events[EVENTS].keys() - {order.order_id for order in orders}
    return problems + [f"order {order_id}, which nobody asked for, has events" for order_id in strangers]


def _broken_promises(order: Order, events: Sequence[Entry]) -> list[str]:
    problems = []
    of_clients = set()
    for step in order.steps:
        kind, effects = COMMAND_TYPES[step.kind], _effects(order, step, events)
        of_clients |= {event.id for event in effects}
        found = [event.type for event in effects]
        if len(found) != 1 and (step.acknowledged or found):
            problems.append(f"its {kind} {step.command_id} came to {found}")
        problems += [f"its {kind} came to {name}" for name in found if name not in OUTCOMES[kind]]
        if any(datetime.fromisoformat(event.timestamp) != step.asked_at for event in effects):
            problems.append(f"its {kind} was asked for at {step.asked_at}, and happened at {effects[0].timestamp}")
    others = [event.type for event in events if event.id not in of_clients]
    if others not in ([], ["order.confirmed"], ["order.cancelled"]):
        problems.append(f"its saga made {others} of it")
    placed = (event.payload for event in events if event.type == "order.placed")
    return problems + [f"placed was {payload}, not {order}" for payload in placed if not _is_of(order, payload)]


def _effects(order: Order, step: Step, events: Sequence[Entry]) -> list[Entry]:
    """The events that a command of a customer came to."""
    if step.kind == PLACE and order.over_http:  # its command has an id of the worker's
        return [event for event in events if event.type == "order.placed"]
    return [event for event in events if event.cause == step.command_id]


def _is_of(order: Order, placed: Mapping[str, Any]) -> bool:
    items = [(item["productId"], item["quantity"], amount(item["price"])) for item in placed["items"]]
    asked = [(product, quantity, (price, CURRENCY)) for product, quantity, price in order.items]
    total = amount(placed["total"])
    return (items, placed["customerId"], total) == (asked, order.customer_id, (order.total, CURRENCY))


def count_broken(ledger: Ledger) -> tuple[int, int]:
    """How many commands that were acknowledged have no effect, and how many effects there are too many."""
    lost = duplicated = 0
    for order in ledger.world.orders:
        events = ledger.events[EVENTS].get(order.order_id or "", [])
        for step in order.steps:
            effects = len(_effects(order, step, events))
            lost += step.acknowledged and not effects
            duplicated += max(0, effects - 1)
    return lost, duplicated
