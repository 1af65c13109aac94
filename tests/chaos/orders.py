"""Orders as the clients of a chaos run remember them: what they asked for, and what they were promised."""

from __future__ import annotations

import json
import random
import uuid
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

CURRENCY = "GBP"

# Kinds of steps: what is asked, and the event that must follow exactly once.
PLACE, CONFIRM, CANCEL = "place", "confirm", "cancel"
COMMAND_TYPES = {PLACE: "order.place", CONFIRM: "order.confirm", CANCEL: "order.cancel"}
EVENT_TYPES = {PLACE: "order.placed", CONFIRM: "order.confirmed", CANCEL: "order.cancelled"}
REJECTED = "order.rejected"


@dataclass
class Step:
    """One command: the type of the event that must follow, and whether somebody acknowledged the command.

    `command_id` is the command's event id; over HTTP it is chosen by the worker and unknown, `http_key` then makes
    repeated requests the same.
    """

    kind: str
    event_type: str
    command_id: str
    asked_at: datetime
    acknowledged: bool = False


@dataclass
class Order:
    """One order; `ref` is written into the mail address, so that an order placed under two ids is noticed."""

    ref: str
    order_id: str | None
    customer_id: str
    items: list[tuple[str, int, Decimal]]
    over_http: bool
    with_key: bool
    steps: list[Step] = field(default_factory=list)

    @property
    def email(self) -> str:
        """Where `ref` is found again."""
        return f"{self.ref}@example.org"

    @property
    def total(self) -> Decimal:
        """The sum of quantity x price."""
        return sum((quantity * price for _, quantity, price in self.items), Decimal(0))

    def http_body(self) -> dict[str, Any]:
        """The body of `POST /orders`; always the same for the same order."""
        items = [
            {"product_id": product, "quantity": quantity, "price": _money(price)}
            for product, quantity, price in self.items
        ]
        body = {
            "customer_id": self.customer_id,
            "items": items,
            "email": self.email,
            "occurred_at": timestamp(self.steps[0].asked_at),
        }
        return body if self.with_key else body | {"order_id": self.order_id}

    def command(self, step: Step) -> bytes:
        """The command as a record's value."""
        payload: dict[str, Any] = {"orderId": self.order_id}
        if step.kind == PLACE:
            payload |= {
                "customerId": self.customer_id,
                "items": [{"productId": p, "quantity": q, "price": _money(price)} for p, q, price in self.items],
                "total": _money(self.total),
                "country": "France",
                "email": self.email,
            }
        envelope = {
            "eventId": step.command_id,
            "eventType": COMMAND_TYPES[step.kind],
            "aggregateId": self.order_id,
            "aggregateType": "Order",
            "timestamp": timestamp(step.asked_at),
            "version": 1,
            "metadata": {"correlationId": self.ref, "causationId": None, "userId": None},
            "payload": payload,
        }
        return json.dumps(envelope).encode()


def timestamp(time: datetime) -> str:
    """A time as it travels."""
    return time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _money(amount: Decimal) -> dict[str, str]:
    return {"amount": str(amount), "currency": CURRENCY}


def random_order(rnd: random.Random, run: str, number: int, http_share: float, customers: int = 200) -> Order:
    """An order with its steps: placed, some confirmed, some cancelled, and now and then one that must be refused."""
    over_http = rnd.random() < http_share
    with_key = over_http and rnd.random() < 0.5
    ref = f"{run}-{number}"
    order = Order(
        ref,
        None if with_key else f"order-{ref}",
        f"customer-{rnd.randrange(customers)}",
        [
            (f"SKU-{rnd.randrange(1000)}", rnd.randrange(1, 9), Decimal(rnd.randrange(1, 10_000)) / 100)
            for _ in range(rnd.randrange(1, 4))
        ],
        over_http,
        with_key,
    )
    kinds = [PLACE]
    if rnd.random() < 0.5:
        kinds.append(CONFIRM)
    if rnd.random() < 0.3:
        kinds.append(CANCEL)
    order.steps = [_step(rnd, kind, EVENT_TYPES[kind]) for kind in kinds]
    if rnd.random() < 0.05:
        # Whatever it is by now, it cannot be placed again (over HTTP another body would be another request).
        kind = CANCEL if kinds[-1] == CANCEL else CONFIRM if kinds[-1] == CONFIRM else None
        if kind is not None:
            order.steps.append(_step(rnd, kind, REJECTED))
    return order


def _step(rnd: random.Random, kind: str, event_type: str) -> Step:
    return Step(kind, event_type, str(uuid.UUID(int=rnd.getrandbits(128), version=4)), datetime.now(UTC))
