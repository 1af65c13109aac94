"""Checks of money: one charge of an order, of its total, one refund at most, and sums that agree to the cent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from decimal import Decimal

from tests.chaos.ledger import Ledger, amount
from tests.chaos.verifier import PAYMENT_COMMANDS, PAYMENT_EVENTS

Books = Mapping[str, tuple[int, int, Decimal]]
"""A gateway's: by order, how often money was taken, how often given back, and what is there."""


def check_money(ledger: Ledger) -> list[str]:
    """At most one charge of an order, of its total; at most one refund, of what was charged; the sums agree."""
    problems = []
    balance = Decimal(0)
    for order_id, events in ledger.events[PAYMENT_EVENTS].items():
        purchase = ledger.purchases.get(order_id)
        kinds = [event.type.partition(".")[2] for event in events if event.type != "payment.refund_failed"]
        if purchase is None:
            problems.append(f"order {order_id}, which was never placed, has payments {kinds}")
        elif kinds not in (["received"], ["failed"], ["received", "refunded"]):
            problems.append(f"order {order_id}: its payment went {kinds}")
        for event in events:
            if event.type in ("payment.received", "payment.refunded"):
                found = Decimal(event.payload["amount"]["amount"])
                balance += found if event.type == "payment.received" else -found
                if purchase and amount(event.payload["amount"]) != (purchase.total, purchase.currency):
                    problems.append(f"order {order_id} of {purchase.total}: {event.type} {found}")
                if purchase and event.payload["customerId"] != purchase.customer_id:
                    problems.append(f"order {order_id}: {event.type} of {event.payload['customerId']}")
    confirmed = (purchase.total for purchase in ledger.purchases.values() if purchase.status == "confirmed")
    if balance != (sold := sum(confirmed, Decimal(0))):
        problems.append(f"charged - refunded is {balance}, confirmed orders are worth {sold}")
    return problems


def check_books(ledger: Ledger, books: Books, keys: Mapping[str, set[str]]) -> list[str]:
    """The gateway took and gave back once what the events say, and was asked under one key for each order."""
    problems = [f"order {order_id} was charged under {found}" for order_id, found in keys.items() if len(found) > 1]
    for order_id in books.keys() | ledger.events[PAYMENT_EVENTS].keys():
        events = ledger.payments(order_id)
        kinds = Counter(event.type for event in events)
        received = sum(
            (Decimal(e.payload["amount"]["amount"]) for e in events if e.type == "payment.received"), Decimal(0)
        )
        refunded = kinds["payment.refunded"]
        expected = (kinds["payment.received"], refunded, Decimal(0) if refunded else received)
        if (found := books.get(order_id, (0, 0, Decimal(0)))) != expected:
            problems.append(f"order {order_id}: the gateway's books say {found}, the events {expected}")
    return problems


def check_charges(ledger: Ledger) -> list[str]:
    """Money is asked for only when every line is reserved, and it is the order's total."""
    problems = []
    for command in ledger.commands[PAYMENT_COMMANDS]:
        purchase = ledger.purchases.get(command.key)
        if purchase is None:
            problems.append(f"{command.type} of order {command.key}, which was never placed")
        elif command.type == "payment.charge":
            lines = ledger.lines_of(command.key)
            if len(lines) < len(purchase.lines) or not all(line.reserved for line in lines.values()):
                problems.append(f"order {command.key} was charged without its stock: {lines}")
            if amount(command.payload["amount"]) != (purchase.total, purchase.currency):
                problems.append(f"order {command.key} of {purchase.total}: asked for {command.payload['amount']}")
    return problems
