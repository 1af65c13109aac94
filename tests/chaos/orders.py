"""Orders as the clients of a chaos run remember them: what they asked for, and what they were promised."""

from __future__ import annotations

import json
import random
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

CURRENCY = "GBP"

# Kinds of steps: what is asked, and the event that must follow exactly once.
PLACE, CONFIRM, CANCEL, SHIP = "place", "confirm", "cancel", "ship"
COMMAND_TYPES = {PLACE: "order.place", CONFIRM: "order.confirm", CANCEL: "order.cancel", SHIP: "order.ship"}
EVENT_TYPES = {PLACE: "order.placed", CONFIRM: "order.confirmed", CANCEL: "order.cancelled", SHIP: "order.shipped"}
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
    """One order; `ref` is written into the mail address, so that an order placed under two ids is noticed.

    `token` is what the last answer over HTTP gave for reading it back.
    """

    ref: str
    order_id: str | None
    customer_id: str
    items: list[tuple[str, int, Decimal]]
    over_http: bool
    with_key: bool
    steps: list[Step] = field(default_factory=list)
    token: str | None = None

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
        assert self.order_id is not None
        return encode(
            COMMAND_TYPES[step.kind], step.command_id, ("Order", self.order_id), step.asked_at, self.ref, payload
        )


def encode(
    event_type: str,
    command_id: str,
    aggregate: tuple[str, str],
    asked_at: datetime,
    correlation_id: str,
    payload: Mapping[str, Any],
) -> bytes:
    """A command as a record's value; `aggregate` is type and id."""
    envelope = {
        "eventId": command_id,
        "eventType": event_type,
        "aggregateId": aggregate[1],
        "aggregateType": aggregate[0],
        "timestamp": timestamp(asked_at),
        "version": 1,
        "metadata": {"correlationId": correlation_id, "causationId": None, "userId": None},
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
    order.steps = [new_step(rnd, kind, EVENT_TYPES[kind]) for kind in kinds]
    if rnd.random() < 0.05:
        # Whatever it is by now, it cannot be placed again (over HTTP another body would be another request).
        kind = CANCEL if kinds[-1] == CANCEL else CONFIRM if kinds[-1] == CONFIRM else None
        if kind is not None:
            order.steps.append(new_step(rnd, kind, REJECTED))
    return order


def new_step(rnd: random.Random, kind: str, event_type: str) -> Step:
    """A step that is to be taken."""
    return Step(kind, event_type, new_id(rnd), datetime.now(UTC))


def new_id(rnd: random.Random) -> str:
    """An id for a command."""
    return str(uuid.UUID(int=rnd.getrandbits(128), version=4))
