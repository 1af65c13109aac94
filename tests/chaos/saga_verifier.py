"""Do stock, money, orders and their sagas agree, with what was promised and with each other, once all has settled?

As in `verifier`, nothing here uses the services' own code. Every check looks at one `Ledger`, which holds what the
topics say, and returns a list of problems.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tests.chaos.ledger import Ledger
from tests.chaos.shop import StockStep
from tests.chaos.verifier import (
    COMMANDS,
    EVENTS,
    PAYMENT_EVENTS,
    check_customer_orders,
    check_dead_letters,
    check_history,
    check_integration_events,
    check_orders_table,
    check_positions,
    check_requests,
    check_summaries,
    check_versions,
)
from tests.chaos.verify_money import Books, check_books, check_charges, check_money
from tests.chaos.verify_orders import (
    TIMED_OUT,
    check_histories,
    check_outcomes,
    check_purchases,
    check_reasons,
)
from tests.chaos.verify_records import check_causes, check_commands, check_replies
from tests.chaos.verify_stock import check_shelves, check_stock
from tests.chaos.verify_views import Views, check_tables, check_timers, check_views
from tests.chaos.world import World

CHECKS = (
    check_stock,
    check_money,
    check_outcomes,
    check_charges,
    check_histories,
    check_reasons,
    check_commands,
    check_replies,
    check_causes,
    check_tables,
    check_timers,
)
# Those of `verifier` that hold with sagas too.
SHARED_CHECKS = (
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


def find_problems(
    ledger: Ledger,
    stock: Sequence[StockStep] = (),
    views: Views | None = None,
    gateway: tuple[Books, Mapping[str, set[str]]] | None = None,
) -> dict[str, list[str]]:
    """What every check found, by its name; checks without problems are left out."""
    world = ledger.world
    found = {check.__name__: check(world) for check in SHARED_CHECKS}
    found |= {check.__name__: check(ledger) for check in CHECKS}
    found["check_purchases"] = check_purchases(ledger, world.orders)
    found["check_shelves"] = check_shelves(ledger, stock)
    found["check_views"] = check_views(ledger, views or {})
    if gateway is not None:
        found["check_books"] = check_books(ledger, *gateway)
    return {name: problems for name, problems in found.items() if problems}


def count_outcomes(ledger: Ledger) -> dict[str, int]:
    """How often what a run is to bring about came about."""
    asked = {command.id for command in ledger.commands[COMMANDS]}
    purchases = ledger.purchases.values()
    events = [event for found in ledger.events[EVENTS].values() for event in found]
    by_saga = [
        event.payload["reason"] for event in events if event.type == "order.cancelled" and event.cause not in asked
    ]
    payments = [event.type for found in ledger.events[PAYMENT_EVENTS].values() for event in found]
    return {
        "confirmed": sum(purchase.status == "confirmed" for purchase in purchases),
        "shipped": sum(purchase.shipped for purchase in purchases),
        "cancelled": sum(purchase.status == "cancelled" for purchase in purchases),
        "out_of_stock": by_saga.count("out_of_stock"),
        "declined": by_saga.count("card_declined"),
        "timed_out": by_saga.count(TIMED_OUT),
        "refunded": payments.count("payment.refunded"),
        "orchestrated": sum(purchase.saga == "orchestration" for purchase in purchases),
        "choreographed": sum(purchase.saga == "choreography" for purchase in purchases),
    }


def is_settled(world: World) -> bool:
    """Whether every record is processed and every saga has ended."""
    if check_positions(world):
        return False
    return all(row["state"] not in ("running", "compensating") for _, row in world.table("sagas"))
