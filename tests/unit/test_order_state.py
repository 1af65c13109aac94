"""The order as it was is what an independent reading of its audit trail gives, after every event and at every time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.orders import InvalidOrderState, Order, decide, evolve, refusal
from engine.declare.envelope import Metadata, follow_up, new_envelope
from streams.events.money import Money
from streams.events.orders import CancelOrder, ConfirmOrder, OrderCommand, OrderItem, PlaceOrder, ShipOrder, registry
from tables.orders.queries import order_view
from tables.orders.state import order_after, order_at

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)
REGISTRY = registry()
JSON = dict[str, Any]

prices = st.decimals(-1, 10**4, places=2).map(lambda amount: Money(amount, "EUR"))
lines = st.lists(st.builds(OrderItem, st.sampled_from(["a", "b"]), st.integers(0, 5), prices), max_size=3).map(tuple)
commands: st.SearchStrategy[OrderCommand] = st.one_of(
    st.builds(PlaceOrder, st.just("o"), st.sampled_from(["c", "d"]), lines, st.none(), st.none() | st.just("France")),
    st.builds(ConfirmOrder, st.just("o")),
    st.builds(CancelOrder, st.just("o"), st.none() | st.text(max_size=5)),
    st.builds(ShipOrder, st.just("o")),
)
minutes = st.integers(-3, 3)  # business time may go backwards


def trail_of(asked: Sequence[tuple[OrderCommand, int]]) -> list[bytes]:
    """The audit trail of an order after these commands, each some minutes after the one before, as it is stored."""
    order: Order | None = None
    trail: list[bytes] = []
    at = NOON
    for number, (command, passed) in enumerate(asked):
        at += timedelta(minutes=passed)
        cause = new_envelope(command, event_id=f"c-{number}", aggregate_id="o", timestamp=at, metadata=Metadata())
        try:
            decided: Sequence[Any] = decide(order, command)
        except InvalidOrderState as error:
            decided = (refusal(command, error),)
        for payload in decided:
            event = follow_up(cause, payload, step="1", aggregate_id="o", aggregate_version=len(trail) + 1)
            order = evolve(order, event)
            trail.append(REGISTRY.encode(event))
    return trail


def fold(events: Sequence[JSON]) -> JSON | None:
    """The order after events as they are on the wire: read by this test alone."""
    view: JSON | None = None
    for event in events:
        kind, payload, at = event["eventType"], event["payload"], event["timestamp"]
        if kind == "order.placed":
            items = payload["items"]
            view = {
                "order_id": payload["orderId"],
                "customer_id": payload["customerId"],
                "status": "pending",
                "item_count": sum(item["quantity"] for item in items),
                "total": payload["total"],
                "created_at": at,
                "confirmed_at": None,
                "cancelled_at": None,
                "country": payload["country"],
                "items": [
                    {"product_id": item["productId"], "quantity": item["quantity"], "price": item["price"]}
                    for item in items
                ],
                "cancel_reason": None,
                "shipped_at": None,
            }
            total = sum(Decimal(item["price"]["amount"]) * item["quantity"] for item in items)
            assert Decimal(view["total"]["amount"]) == total
        elif kind == "order.rejected" and view is None and payload["command"] == "order.place":
            nothing = ("total", "created_at", "confirmed_at", "cancelled_at", "country", "cancel_reason", "shipped_at")
            view = dict.fromkeys(nothing) | {"order_id": "o", "customer_id": payload["customerId"]}
            view |= {"status": "rejected", "items": [], "item_count": 0}
        elif view is not None and kind in ("order.confirmed", "order.cancelled"):
            name = kind.removeprefix("order.")
            view |= {"status": name, f"{name}_at": at}
            if kind == "order.cancelled":
                view["cancel_reason"] = payload["reason"]
        elif view is not None and kind == "order.shipped":
            view["shipped_at"] = at
    return None if view is None else view | {"version": len(events)}


def shown(order: Order | None) -> JSON | None:
    """An order as the route answers it."""
    return None if order is None else json.loads(msgspec.json.encode(order_view(order)))


@given(asked=st.lists(st.tuples(commands, minutes), max_size=10), times=st.lists(st.integers(-10, 10), max_size=4))
@settings(deadline=None, max_examples=60)
def test_the_order_as_it_was_is_what_its_trail_says(asked: list[tuple[OrderCommand, int]], times: list[int]) -> None:
    trail = trail_of(asked)
    history, wire = [REGISTRY.decode(value) for value in trail], [json.loads(value) for value in trail]
    for version in range(1, len(wire) + 1):
        assert shown(order_after(history, version)) == fold(wire[:version])
    assert order_after(history, len(wire) + 1) is None
    moments = [NOON + timedelta(minutes=minute) for minute in times]
    moments += [datetime.fromisoformat(event["timestamp"]) for event in wire]
    moments += [moment - timedelta(microseconds=1) for moment in moments]
    for moment in moments:
        by_then = []
        for event in wire:
            if datetime.fromisoformat(event["timestamp"]) > moment:
                break
            by_then.append(event)
        assert shown(order_at(history, moment)) == fold(by_then)
