"""Given an order on its way, when something happens, then stock, money and order agree: the same in both styles."""

from __future__ import annotations

import random
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pytest

from streams.events.inventory import AddStock, ShipStock
from streams.events.money import Money
from streams.events.orders import CancelOrder, ConfirmOrder, OrderItem, PlaceOrder, ShipOrder
from streams.events.sagas import ResumeSaga
from streams.topics import (
    INVENTORY_COMMANDS,
    ORDER_COMMANDS,
    ORDER_EVENTS,
    PAYMENT_COMMANDS,
    SAGA_COMMANDS,
    SAGA_REPLIES,
)
from tables.inventory import STOCK
from tables.orders import ORDERS
from tables.payments import PAYMENTS
from tables.sagas import SAGA_COUNTS, SAGAS
from tests.unit.saga_world import BACKOFF_S, RETRIES, STEP_TIMEOUT_S, STYLES, World

ORDER = "o-1"
PRICE = Money(Decimal("2.50"), "EUR")


@pytest.fixture(params=STYLES)
def world(request: pytest.FixtureRequest) -> World:
    world = World(request.param)
    stock(world)
    return world


def stock(world: World, pieces: int = 10) -> None:
    """Put pieces of three products on the shelf."""
    for product in ("a", "b", "c"):
        world.tell(INVENTORY_COMMANDS, AddStock(product, pieces), f"stock-{product}")
    world.settle()


def place(world: World, *lines: tuple[str, int], order_id: str = ORDER) -> None:
    """Ask for an order; by default one line of each product."""
    items = tuple(OrderItem(product, quantity, PRICE) for product, quantity in lines or (("a", 1), ("b", 2), ("c", 3)))
    world.tell(ORDER_COMMANDS, PlaceOrder(order_id, "c-1", items), f"place-{order_id}")


def cancel(world: World, reason: str | None = "changed_mind") -> None:
    """Let the customer cancel."""
    world.tell(ORDER_COMMANDS, CancelOrder(ORDER, reason), "cancel")


def story(world: World, order_id: str = ORDER) -> dict[str, Any]:
    """How everything about an order stands."""
    order, saga, payment = world.get(ORDERS, order_id), world.get(SAGAS, order_id), world.get(PAYMENTS, order_id)
    return {
        "order": (order.status, order.cancel_reason),
        "saga": (saga.state, saga.reason),
        "payment": payment.status if payment is not None else None,
        "held": order_id in world.bank.held,
        "reserved": {product: row.reserved for product, row in world.all(STOCK) if row.reserved},
    }


CONFIRMED = {
    "order": ("confirmed", None),
    "saga": ("completed", None),
    "payment": "received",
    "held": True,
    "reserved": {"a": 1, "b": 2, "c": 3},
}


def undone(reason: str, payment: str | None) -> dict[str, Any]:
    """An order that left nothing behind."""
    return {
        "order": ("cancelled", reason),
        "saga": ("compensated", reason),
        "payment": payment,
        "held": False,
        "reserved": {},
    }


def nothing_left(world: World, reason: str) -> None:
    """Check that the order is cancelled and holds neither stock nor money, whatever became of its payment."""
    found = story(world)
    assert found == undone(reason, found["payment"])
    assert found["payment"] in (None, "failed", "refunded")


# ---- success


def test_an_order_with_stock_and_money_is_confirmed(world: World) -> None:
    place(world)
    world.settle()
    assert story(world) == CONFIRMED


def test_lines_with_the_same_product_are_reserved_each(world: World) -> None:
    place(world, ("a", 1), ("a", 2), ("a", 3))
    world.settle()
    assert story(world) == CONFIRMED | {"reserved": {"a": 6}}


def test_a_confirmed_order_can_be_shipped_and_then_not_cancelled(world: World) -> None:
    place(world)
    world.settle()
    world.tell(ORDER_COMMANDS, ShipOrder(ORDER), "ship")
    cancel(world)
    world.settle()
    assert story(world) == CONFIRMED | {"reserved": {}}
    assert {product: row.on_hand for product, row in world.all(STOCK)} == {"a": 9, "b": 8, "c": 7}


def test_no_timer_is_left_when_a_saga_has_ended(world: World) -> None:
    place(world)
    place(world, ("a", 1000), order_id="o-2")
    world.settle()
    assert list(world._timer_keys()) == []
    assert {state: row.count for state, row in world.all(SAGA_COUNTS) if row.count} == {
        "completed": 1,
        "compensated": 1,
    }


def test_an_order_without_a_saga_waits_to_be_confirmed() -> None:
    world = World("none")
    stock(world)
    place(world)
    world.settle()
    assert (world.get(ORDERS, ORDER).status, world.get(SAGAS, ORDER)) == ("pending", None)
    world.tell(ORDER_COMMANDS, ConfirmOrder(ORDER), "confirm")
    world.settle()
    assert world.get(ORDERS, ORDER).status == "confirmed"


def test_nobody_else_confirms_an_order_that_has_a_saga(world: World) -> None:
    place(world)
    world.tell(ORDER_COMMANDS, ConfirmOrder(ORDER), "confirm")
    world.settle(without=("decide-stock",))
    assert world.get(ORDERS, ORDER).status == "pending"
    world.settle()
    assert story(world) == CONFIRMED


# ---- each step failing


@pytest.mark.parametrize("short", ["a", "b", "c"])
def test_one_line_out_of_stock_gives_the_others_back(world: World, short: str) -> None:
    place(world, *((product, 100 if product == short else 1) for product in ("a", "b", "c")))
    world.settle()
    assert story(world) == undone("out_of_stock", None)
    (failed,) = [run for run in world.get(SAGAS, ORDER).steps if run.state == "failed"]
    assert (failed.name, "abc"[failed.line - 1], failed.error) == ("reserve", short, "out_of_stock")


def test_all_lines_out_of_stock(world: World) -> None:
    place(world, ("a", 11), ("b", 11))
    world.settle()
    assert story(world) == undone("out_of_stock", None)


def test_a_product_that_nobody_stocked(world: World) -> None:
    place(world, ("a", 1), ("nowhere", 1))
    world.settle()
    assert story(world) == undone("unknown_product", None)


def test_a_declined_payment_releases_every_line(world: World) -> None:
    world.bank.declines.add(ORDER)
    place(world)
    world.settle()
    assert story(world) == undone("card_declined", "failed")


# ---- each compensation failing


def charged_then_cancelled(world: World) -> None:
    """An order whose customer cancels it after it was confirmed."""
    place(world)
    world.settle()
    cancel(world)


def test_a_refund_that_is_refused_is_tried_again(world: World) -> None:
    world.bank.refuses_refunds[ORDER] = RETRIES
    charged_then_cancelled(world)
    world.settle()
    assert story(world)["saga"] == ("compensating", "changed_mind")
    world.settle_for_good()
    assert story(world) == undone("changed_mind", "refunded")


def test_a_refund_that_is_refused_too_often_stands_as_failed_until_it_is_resumed(world: World) -> None:
    world.bank.refuses_refunds[ORDER] = RETRIES + 1
    charged_then_cancelled(world)
    world.settle_for_good()
    found = story(world)
    assert (found["order"], found["saga"]) == (("cancelled", "changed_mind"), ("compensation_failed", "changed_mind"))
    assert found["held"], "the money is still there, and everybody can see it"
    failed = next(run for run in world.get(SAGAS, ORDER).steps if run.name == "charge")
    assert (failed.state, failed.undo_error, failed.undo_attempts) == ("undo_failed", "account_closed", RETRIES + 1)
    world.tell(SAGA_COMMANDS, ResumeSaga(ORDER), "resume")
    world.settle_for_good()
    assert story(world) == undone("changed_mind", "refunded")


def test_a_release_that_is_refused_stands_as_failed(world: World) -> None:
    world.bank.declines.add(ORDER)
    place(world)
    world.settle(without=("decide-payments",))
    world.tell(INVENTORY_COMMANDS, ShipStock("b", ORDER, 2), "somebody ships too early")
    world.settle(without=("decide-payments",))
    world.settle_for_good()
    found = story(world)
    assert found["saga"] == ("compensation_failed", "card_declined")
    assert found["reserved"].get("b", 0) == 0
    stuck = next(run for run in world.get(SAGAS, ORDER).steps if (run.name, run.line) == ("reserve", 2))
    assert (stuck.state, stuck.undo_error) == ("undo_failed", "already_shipped")


def test_refusals_that_come_twice_count_once(world: World) -> None:
    world.bank.refuses_refunds[ORDER] = 2 * RETRIES + 1
    charged_then_cancelled(world)
    world.settle()
    world.repeat(PAYMENT_COMMANDS)
    world.settle_for_good()
    assert story(world)["saga"] == ("compensation_failed", "changed_mind"), "it is not forgotten half-way"
    refused = [event for event in world.messages(PAYMENT_COMMANDS) if event.event_type == "payment.refund"]
    assert len(refused) == RETRIES + 2  # all tries, and the one that came twice


def test_refused_releases_that_come_twice_count_once(world: World) -> None:
    place(world)
    world.settle(without=("decide-payments",))
    world.tell(INVENTORY_COMMANDS, ShipStock("c", ORDER, 3), "somebody ships too early")
    world.settle(without=("decide-payments",))
    cancel(world)
    world.settle()
    index = max(i for i, event in enumerate(world.messages(INVENTORY_COMMANDS)) if event.aggregate_id == "c")
    world.repeat(INVENTORY_COMMANDS, index)
    world.settle_for_good()
    assert story(world)["saga"] == ("compensation_failed", "changed_mind")
    releases = [event for event in world.messages(INVENTORY_COMMANDS) if event.event_type == "inventory.release"]
    assert len([event for event in releases if event.aggregate_id == "c"]) == RETRIES + 2


def test_resuming_a_saga_that_has_not_failed_changes_nothing(world: World) -> None:
    place(world)
    world.tell(SAGA_COMMANDS, ResumeSaga(ORDER), "resume")
    world.tell(SAGA_COMMANDS, ResumeSaga("nobody"), "resume")
    world.settle()
    assert story(world) == CONFIRMED


def test_the_pause_between_refused_refunds_doubles(world: World) -> None:
    world.bank.refuses_refunds[ORDER] = RETRIES
    charged_then_cancelled(world)
    world.settle()
    asked = sum(message.event_type == "payment.refund" for message in world.messages(PAYMENT_COMMANDS))
    world.pass_time(BACKOFF_S)
    world.settle()
    world.pass_time(BACKOFF_S)
    world.settle()
    again = sum(message.event_type == "payment.refund" for message in world.messages(PAYMENT_COMMANDS))
    assert again == asked + 1
    world.pass_time(BACKOFF_S)
    world.settle()
    assert story(world) == undone("changed_mind", "refunded")


# ---- deadlines


@pytest.mark.parametrize("late", [0, 1, 2])
def test_stock_that_answers_too_late_is_released(world: World, late: int) -> None:
    place(world)
    world.deliver("decide-orders")
    record = world.lose("decide-stock", late)
    world.settle()
    world.pass_time(STEP_TIMEOUT_S - 1)
    assert story(world)["order"] == ("pending", None)
    world.pass_time(2)
    world.settle_for_good()
    nothing_left(world, "timed_out")
    world.give_back("decide-stock", record)
    world.settle_for_good()
    nothing_left(world, "timed_out")


@pytest.mark.parametrize("late", [0, 1, 2])
def test_a_reply_of_stock_that_comes_too_late_is_compensated(world: World, late: int) -> None:
    place(world)
    world.deliver("decide-orders")
    for _ in range(3):
        world.deliver("decide-stock")
    record = world.lose("take-replies", late)
    world.settle()
    world.pass_time(STEP_TIMEOUT_S + 1)
    world.settle_for_good()
    assert story(world)["order"] == ("cancelled", "timed_out")
    world.give_back("take-replies", record)
    world.settle_for_good()
    nothing_left(world, "timed_out")


def test_money_that_was_taken_too_late_is_given_back(world: World) -> None:
    place(world)
    world.settle(without=("decide-payments",))
    record = world.lose("decide-payments")
    world.pass_time(STEP_TIMEOUT_S + 1)
    world.settle_for_good()
    assert story(world)["order"] == ("cancelled", "timed_out")
    world.give_back("decide-payments", record)
    world.settle_for_good()
    nothing_left(world, "timed_out")


def test_a_late_refusal_changes_nothing(world: World) -> None:
    world.bank.declines.add(ORDER)
    place(world)
    world.settle(without=("decide-payments",))
    record = world.lose("decide-payments")
    world.pass_time(STEP_TIMEOUT_S + 1)
    world.settle_for_good()
    world.give_back("decide-payments", record)
    world.settle_for_good()
    nothing_left(world, "timed_out")


def test_each_step_has_its_own_deadline(world: World) -> None:
    place(world)
    world.deliver("decide-orders")
    world.pass_time(STEP_TIMEOUT_S - 5)
    world.settle(without=("decide-payments",))
    world.pass_time(STEP_TIMEOUT_S - 5)
    assert story(world)["order"] == ("pending", None)
    world.settle()
    assert story(world) == CONFIRMED


# ---- cancelling


def deliver(*agents: str) -> Callable[[World], None]:
    """Let these agents take one message each, one after the other."""

    def go(world: World) -> None:
        for agent in agents:
            world.deliver(agent)

    return go


def settle_without(*agents: str, then: Callable[[World], None] = lambda world: None) -> Callable[[World], None]:
    """Let everybody else take everything."""

    def go(world: World) -> None:
        world.settle(without=agents)
        then(world)

    return go


STEPS: list[tuple[str, Callable[[World], None]]] = [
    ("before anything is reserved", deliver()),
    ("with one line reserved", deliver("decide-stock")),
    ("with one line reserved and known", deliver("decide-stock", "take-replies")),
    ("with all lines reserved", settle_without("take-replies")),
    ("while the money is asked for", settle_without("decide-payments")),
    ("when confirmed", settle_without("decide-payments", then=deliver("decide-payments"))),
    ("when all is done", settle_without()),
]


@pytest.mark.parametrize(("moment", "go"), STEPS, ids=[moment for moment, _ in STEPS])
def test_a_customer_may_cancel_at_any_moment(world: World, moment: str, go: Callable[[World], None]) -> None:
    place(world)
    world.deliver("decide-orders")
    go(world)
    cancel(world)
    world.deliver("decide-orders")
    assert world.get(ORDERS, ORDER).status == "cancelled", moment
    world.settle_for_good()
    nothing_left(world, "changed_mind")


def test_cancelling_without_a_reason(world: World) -> None:
    place(world)
    cancel(world, None)
    world.settle_for_good()
    assert (story(world)["order"], story(world)["saga"]) == (("cancelled", None), ("compensated", "cancelled"))


def test_cancelling_while_it_is_being_undone(world: World) -> None:
    world.bank.declines.add(ORDER)
    place(world)
    world.settle(without=("decide-payments",))
    world.deliver("decide-payments")
    assert story(world)["saga"] == ("compensating", "card_declined")
    cancel(world)
    world.settle_for_good()
    found = story(world)
    assert found["order"][0] == "cancelled"
    assert found["saga"] == ("compensated", "card_declined")
    assert (found["held"], found["reserved"]) == (False, {})


# ---- duplicates and reordering

SCENES: list[tuple[str, Callable[[World], None], Callable[[World], None]]] = [
    ("success", lambda world: None, lambda world: None),
    ("out of stock", lambda world: None, lambda world: None),
    ("declined", lambda world: world.bank.declines.add(ORDER), lambda world: None),
    ("refund refused once", lambda world: world.bank.refuses_refunds.update({ORDER: 1}), cancel),
    ("cancelled", lambda world: None, cancel),
]
QUANTITIES = {"out of stock": 100}


def play(world: World, scene: str, step: Callable[[World], None]) -> dict[str, Any]:
    """Play a scene with `step` moving the world on; how it ends."""
    _, prepare, afterwards = next(found for found in SCENES if found[0] == scene)
    prepare(world)
    place(world, ("a", 1), ("b", QUANTITIES.get(scene, 2)), ("c", 3))
    step(world)
    afterwards(world)
    step(world)
    world.settle_for_good()
    return story(world)


def twice(world: World) -> None:
    """Deliver every message twice, the second time after the first has had its effect."""
    while agent := next((name for name, records in world.waiting.items() if records), None):
        record = world.waiting[agent][0]
        world.deliver(agent)
        world.give_back(agent, record)
        world.deliver(agent, len(world.waiting[agent]) - 1)


@pytest.mark.parametrize("scene", [name for name, _, _ in SCENES])
def test_every_message_delivered_twice_changes_nothing(world: World, scene: str) -> None:
    expected = World(world.settings.saga)
    stock(expected)
    assert play(world, scene, twice) == play(expected, scene, lambda one: one.settle())


@pytest.mark.parametrize("scene", [name for name, _, _ in SCENES])
@pytest.mark.parametrize("topic", [ORDER_EVENTS, INVENTORY_COMMANDS, PAYMENT_COMMANDS, SAGA_REPLIES, ORDER_COMMANDS],
                         ids=lambda topic: topic.name)  # fmt: skip
def test_messages_that_come_again_when_all_is_over_change_nothing(world: World, scene: str, topic: Any) -> None:
    ended = play(world, scene, lambda one: one.settle())
    for index in range(len(world.topics[topic.name])):
        world.repeat(topic, index)
    world.settle_for_good()
    assert story(world) == ended


@pytest.mark.parametrize("scene", [name for name, _, _ in SCENES if name != "cancelled"])
@pytest.mark.parametrize("seed", range(20))
def test_messages_in_any_order_end_the_same(world: World, scene: str, seed: int) -> None:
    chance = random.Random(seed)

    def shuffled(one: World) -> None:
        while any(one.waiting.values()):
            agent = chance.choice([name for name, records in one.waiting.items() if records])
            one.deliver(agent, chance.randrange(len(one.waiting[agent])))

    found = play(world, scene, shuffled)
    expected = World(world.settings.saga)
    stock(expected)
    usual = play(expected, scene, lambda one: one.settle())
    if scene == "out of stock" or world.settings.saga == "choreography":  # whether money was asked for depends
        found, usual = found | {"payment": None}, usual | {"payment": None}
    assert found == usual
