"""Checks of stock: never oversold, each line reserved, released and shipped at most once."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from tests.chaos.ledger import Entry, Ledger, Shelf
from tests.chaos.shop import ADD, StockStep
from tests.chaos.verifier import STOCK_EVENTS


def check_stock(ledger: Ledger) -> list[str]:
    """Stocked - shipped >= reserved >= 0 at every point; each line reserved, released and shipped at most once."""
    problems = []
    for product_id, events in ledger.events[STOCK_EVENTS].items():
        shelf, held = Shelf(), defaultdict[tuple[str, int], list[int]](list)
        for event in events:
            problem = _follow_stock(shelf, held, event)
            if not problem and not 0 <= shelf.reserved <= shelf.on_hand:
                problem = f"{shelf.reserved} of {shelf.on_hand} pieces are reserved"
            if problem:
                problems.append(f"{product_id} at event {event.version}, {event.type} {event.payload}: {problem}")
    return problems


def _follow_stock(shelf: Shelf, held: dict[tuple[str, int], list[int]], event: Entry) -> str:
    """Take the next event of a product in; the problem with it. `held`: nothing, pieces, or 0 for what is over."""
    payload, free = event.payload, shelf.on_hand - shelf.reserved
    shelf.version += 1
    if event.type == "inventory.stocked":
        shelf.stocked, shelf.on_hand = True, shelf.on_hand + payload["quantity"]
        return "" if shelf.on_hand == payload["onHand"] else f"there are {shelf.on_hand}"
    if event.type == "inventory.rejected":
        return ""
    line = held[payload["orderId"], payload["line"]]
    pieces = line[-1] if line else 0
    if event.type == "inventory.reserved":
        shelf.reserved += payload["quantity"]
        line.append(payload["quantity"])
        if len(line) > 1:
            return "the line was decided before"
        return f"oversold, {free} were free" if payload["quantity"] > free else ""
    if event.type == "inventory.reservation_failed":
        return _needless_refusal(payload, free, shelf, is_over=bool(line))
    if event.type == "inventory.released":
        shelf.reserved -= pieces
        line.append(0)
        return "" if payload["quantity"] == pieces else f"the line held {pieces}"
    if event.type == "inventory.shipped":
        shelf.reserved, shelf.on_hand = shelf.reserved - pieces, shelf.on_hand - pieces
        line.append(0)
        return "" if payload["quantity"] == pieces > 0 else f"the line held {pieces}"
    return "nobody expects that"


def _needless_refusal(payload: Mapping[str, Any], free: int, shelf: Shelf, is_over: bool) -> str:
    expected = {
        "out_of_stock": payload["quantity"] > free,
        "unknown_product": not shelf.stocked,
        "released_before": is_over,
    }
    right = expected.get(payload["reason"], False) and payload["available"] == free
    return "" if right else f"refused although {free} were free"


def check_shelves(ledger: Ledger, stock: Sequence[StockStep]) -> list[str]:
    """Every acknowledged command of the shop's own had its effect, once."""
    effects = defaultdict(list)
    for events in ledger.events[STOCK_EVENTS].values():
        for event in events:
            effects[event.cause].append(event)
    problems = []
    for step in stock:
        found = effects[step.command_id]
        if len(found) != 1 and (step.acknowledged or found):
            problems.append(f"{step} came to {[event.type for event in found]}")
        for event in found:
            right = event.type == "inventory.rejected" or (
                event.payload["quantity" if step.kind == ADD else "onHand"] == step.quantity
            )
            if event.key != step.product_id or not right:
                problems.append(f"{step} came to {event.payload}")
    return problems
