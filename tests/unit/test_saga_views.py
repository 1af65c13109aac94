"""The view of a saga tells everything that happened to it, with times, in both styles."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from streams.events.inventory import ShipStock
from streams.topics import INVENTORY_COMMANDS
from tables.orders import ORDERS
from tables.sagas import FAILED_SAGAS, SAGAS
from tables.sagas.choreography import DEADLINES
from tables.sagas.views import SagaView, saga_view
from tests.unit.saga_world import STEP_TIMEOUT_S, STYLES, World
from tests.unit.test_saga_scenarios import ORDER, cancel, place, stock


@pytest.fixture(params=STYLES)
def world(request: pytest.FixtureRequest) -> World:
    world = World(request.param)
    stock(world)
    return world


def view(world: World) -> SagaView:
    """The order's saga as the web view shows it."""
    return saga_view(world.get(SAGAS, ORDER), world.get(ORDERS, ORDER), world.get(DEADLINES, ORDER), world.settings)


def types(shown: SagaView) -> list[tuple[str, int | None]]:
    """What happened, in the order in which it did."""
    return [(happening.type, happening.line) for happening in shown.timeline]


def as_json(shown: SagaView) -> Any:
    return msgspec.json.decode(msgspec.json.encode(shown))


def test_a_completed_saga_shows_commands_and_answers_in_their_order(world: World) -> None:
    place(world, ("a", 1), ("b", 1))
    world.settle()
    shown = view(world)
    assert (shown.state, shown.reason, shown.deadline, shown.version) == ("completed", None, None, 1)
    assert types(shown) == [
        ("order.placed", None),
        ("inventory.reserve", 1),
        ("inventory.reserve", 2),
        ("inventory.reserved", 1),
        ("inventory.reserved", 2),
        ("payment.charge", None),
        ("payment.received", None),
        *([("order.confirm", None)] if shown.style == "orchestration" else []),
        ("order.confirmed", None),
        ("saga.completed", None),
    ]
    assert [step.product_id for step in shown.steps] == [None, "a", "b", None, None]
    assert all(step.compensation is None for step in shown.steps)
    assert shown.timeline[-1].at == shown.ended_at
    assert as_json(shown)["steps"][1]["action"]["command"] == "inventory.reserve"


def test_a_running_saga_shows_when_it_stops_waiting(world: World) -> None:
    place(world)
    asked_ms = world.now_ms
    world.deliver("decide-orders")
    shown = view(world)
    assert shown.deadline is not None
    assert shown.ended_at is None
    assert world.get(SAGAS, ORDER).started_ms >= asked_ms
    assert {step.state for step in shown.steps if step.step == "reserve"} == {"asked"}


def test_errors_and_compensations_are_shown_with_their_times(world: World) -> None:
    world.bank.refuses_refunds[ORDER] = 1
    place(world, ("a", 1))
    world.settle()
    cancel(world)
    world.settle_for_good()
    shown = view(world)
    charge = next(step for step in shown.steps if step.step == "charge")
    assert (shown.state, shown.reason) == ("compensated", "changed_mind")
    assert charge.compensation is not None
    assert (charge.compensation.command, charge.compensation.reply) == ("payment.refund", "payment.refunded")
    assert charge.compensation.attempts == 1
    assert charge.compensation.replied_at is not None
    assert charge.compensation.asked_at is not None
    assert charge.compensation.asked_at <= charge.compensation.replied_at
    assert types(shown)[-1] == ("saga.compensated", None)


def test_a_failed_step_says_why(world: World) -> None:
    place(world, ("a", 100))
    world.settle()
    (step,) = [step for step in view(world).steps if step.step == "reserve"]
    assert (step.state, step.action.reply, step.action.error) == (
        "failed",
        "inventory.reservation_failed",
        "out_of_stock",
    )


def test_a_passed_deadline_is_in_the_timeline() -> None:
    world = World("orchestration")
    stock(world)
    place(world, ("a", 1))
    world.deliver("decide-orders")
    world.pass_time(STEP_TIMEOUT_S + 1)
    world.settle_for_good()
    assert ("saga.timed_out", 1) in types(view(world))


def test_a_compensation_that_nobody_answers_is_not_shown_as_refused() -> None:
    world = World("orchestration")
    stock(world)
    place(world, ("a", 1))
    world.settle()
    cancel(world)
    world.settle(without=("decide-payments",))
    world.pass_time(STEP_TIMEOUT_S + 0.5)
    shown = view(world)
    charge = next(step for step in shown.steps if step.step == "charge")
    assert charge.compensation is not None
    assert (charge.compensation.reply, charge.compensation.error) == (None, "no_answer")
    assert types(shown)[-1] == ("saga.timed_out", None)


def test_what_cannot_be_undone_is_listed_until_it_is(world: World) -> None:
    place(world, ("a", 1), ("b", 1))
    world.settle()
    world.tell(INVENTORY_COMMANDS, ShipStock("b", ORDER, 2), "somebody ships too early")
    world.settle()
    cancel(world)
    world.settle_for_good()
    shown, listed = view(world), world.get(FAILED_SAGAS, ORDER)
    assert (shown.state, shown.deadline) == ("compensation_failed", None)
    assert (listed.step, listed.line, listed.error) == ("reserve", 2, "already_shipped")
