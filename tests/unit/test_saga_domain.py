"""Decisions of a saga by itself: what is asked for, in which order it is undone, and which definition holds."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal

import pytest
from msgspec.structs import replace

from domain.orders import Order, evolve
from domain.sagas.definition import DEFINITIONS, NEWEST, Answer, Step
from domain.sagas.machine import Command, Policy, advance, apply, begin, business_time, resume, wakes_at
from domain.sagas.state import Saga
from engine.declare.envelope import Envelope, Message, Metadata, new_envelope
from engine.declare.times import LATEST
from streams.events.inventory import ReserveStock, StockReleased, StockReservationFailed, StockReserved
from streams.events.money import Money
from streams.events.orders import OrderConfirmed, OrderItem, OrderPlaced, OrderRejected
from streams.events.payments import PaymentReceived, PaymentRefunded
from tests.unit.test_envelope import TEN_O_CLOCK

POLICY = Policy(step_timeout_ms=60_000, retries=2, backoff_ms=1000)
MONEY = Money(Decimal("7.50"), "EUR")
PLACED = OrderPlaced("o-1", "c-1", tuple(OrderItem(product, 1, MONEY) for product in "abc"), MONEY)


def placed() -> tuple[Envelope[OrderPlaced], Order]:
    """An order that was just placed."""
    event = new_envelope(
        PLACED, event_id="e-1", aggregate_id="o-1", timestamp=TEN_O_CLOCK, metadata=Metadata("trace"),
        aggregate_version=1,
    )  # fmt: skip
    return event, evolve(None, event)


def asked(commands: list[Command]) -> list[tuple[str, str]]:
    """Type and step of each command."""
    return [(command.payload.event_type, command.step) for command in commands]


class Run:
    """A saga on its way; every event is applied and followed by what the saga asks for."""

    def __init__(self, version: int = NEWEST) -> None:
        event, self.order = placed()
        self.now_ms = 1000
        self.saga: Saga = begin(event, "orchestration", self.now_ms, version)

    def go(self, *events: Message, after_ms: int = 1) -> list[tuple[str, str]]:
        """What is asked for after the events."""
        self.now_ms += after_ms
        for event in events:
            self.saga = apply(self.saga, event, self.now_ms)
        self.saga, commands = advance(self.saga, self.order, self.now_ms, POLICY)
        return asked(commands)

    def states(self) -> list[str]:
        """Where each step stands."""
        return [run.state for run in self.saga.steps]


def reserved(line: int) -> StockReserved:
    return StockReserved("abc"[line - 1], "o-1", line, 1)


def released(line: int) -> StockReleased:
    return StockReleased("abc"[line - 1], "o-1", line, 1)


RECEIVED = PaymentReceived("o-1", "c-1", MONEY, "r-1")


def test_the_money_is_asked_for_when_all_lines_are_reserved_and_the_order_confirmed_when_it_is_here() -> None:
    run = Run()
    assert run.go() == [("inventory.reserve", f"reserve:{line}") for line in (1, 2, 3)]
    assert run.go(reserved(3), reserved(1)) == []
    assert run.go(reserved(2)) == [("payment.charge", "charge")]
    assert run.go(RECEIVED) == [("order.confirm", "confirm")]
    assert run.go(OrderConfirmed("o-1", "c-1", MONEY)) == []
    assert (run.saga.state, set(run.states())) == ("completed", {"done"})


def test_it_is_undone_last_in_first_out_one_after_the_other() -> None:
    run = Run()
    run.go()
    run.go(reserved(1), reserved(2), reserved(3))
    run.go(RECEIVED)
    refused = OrderRejected("o-1", None, "order.confirm", "already_cancelled", "the order is cancelled")
    assert run.go(refused)[0][0] == "payment.refund"
    assert run.go() == []  # nothing else before the refund is acknowledged
    money_back = PaymentRefunded("o-1", "c-1", MONEY, "r-2")
    for line, event in ((3, money_back), (2, released(3)), (1, released(2))):
        ((kind, step),) = run.go(event)
        assert (kind, step.startswith("reserve:undo"), step.endswith(f":{line}")) == ("inventory.release", True, True)
        assert run.go() == []
    assert run.go(released(1))[0][0] == "order.cancel"
    assert run.saga.reason == "already_cancelled"


def test_only_what_is_done_is_undone() -> None:
    run = Run()
    run.go()
    assert run.go(reserved(1), StockReservationFailed("b", "o-1", 2, 1, 0, "out_of_stock")) == []  # line 3 is open
    assert [kind for kind, _ in run.go(reserved(3))] == ["inventory.release"]
    assert run.states() == ["done", "done", "failed", "undoing", "pending", "pending"]


def test_somebody_elses_refused_command_is_no_answer() -> None:
    run = Run()
    run.go()
    before = run.saga
    refusal = OrderRejected("o-1", None, "order.confirm", "saga_running", "it is confirmed by itself")
    assert apply(run.saga, refusal, run.now_ms) is before


def test_a_compensation_that_nobody_answers_is_tried_again_and_then_stands_as_failed() -> None:
    run = Run()
    run.go()
    assert run.go(reserved(1), StockReservationFailed("b", "o-1", 2, 1, 0, "out_of_stock"), reserved(3)) != []
    for attempt in range(1, POLICY.retries + 1):
        assert run.go(after_ms=POLICY.step_timeout_ms) == []
        assert wakes_at(run.saga, POLICY) == run.now_ms + POLICY.backoff_ms * 2 ** (attempt - 1)
        assert len(run.go(after_ms=POLICY.backoff_ms * 2 ** (attempt - 1))) == 1
    assert run.go(after_ms=POLICY.step_timeout_ms) == []
    failed = run.saga
    assert failed.state == "compensation_failed"
    assert run.saga.steps[3].undo_error == "no_answer"
    assert wakes_at(run.saga, POLICY) is None
    # What was thought lost may still come.
    assert [kind for kind, _ in run.go(released(3))] == ["inventory.release"]
    assert run.saga.state == "compensating"


def test_a_refused_cancellation_is_tried_again_too_and_then_stands_as_failed() -> None:
    run = Run()
    run.go()
    no_stock = [StockReservationFailed("abc"[line - 1], "o-1", line, 1, 0, "out_of_stock") for line in (1, 2, 3)]
    refused = OrderRejected("o-1", None, "order.cancel", "already_shipped", "the order has been sent away")
    assert [kind for kind, _ in run.go(*no_stock)] == ["order.cancel"]
    for attempt in range(1, POLICY.retries + 1):
        assert run.go(refused) == []
        again = run.go(after_ms=POLICY.backoff_ms * 2 ** (attempt - 1))
        assert [kind for kind, _ in again] == ["order.cancel"]
    assert run.go(refused) == []
    assert run.saga.state == "compensation_failed"
    assert (run.saga.steps[0].state, run.saga.steps[0].undo_error) == ("undo_failed", "already_shipped")


def test_an_answer_after_the_deadline_is_compensated_even_while_others_are() -> None:
    run = Run()
    run.go()
    run.go(reserved(1), reserved(2))
    assert [step[-1] for _, step in run.go(after_ms=POLICY.step_timeout_ms)] == ["2"]
    assert run.saga.reason == "timed_out"
    assert run.go(reserved(3)) == [("inventory.release", f"reserve:undo:0:{run.now_ms}:3")]
    assert run.go(released(2), released(3)) == [("inventory.release", f"reserve:undo:0:{run.now_ms}:1")]


def test_every_command_has_an_id_of_its_own() -> None:
    run = Run()
    steps = [step for _, step in run.go()]
    steps += [step for _, step in run.go(reserved(1), StockReservationFailed("b", "o-1", 2, 1, 0, "gone"), reserved(3))]
    for _ in range(2 * POLICY.retries + 1):
        steps += [step for _, step in run.go(after_ms=POLICY.step_timeout_ms)]
    run.saga = resume(run.saga)
    steps += [step for _, step in run.go(after_ms=POLICY.step_timeout_ms)]
    assert len(steps) == len(set(steps)) == 5 + POLICY.retries


def test_business_time_goes_on_as_long_as_it_took() -> None:
    run = Run()
    assert (business_time(run.saga, run.saga.started_ms + 1500) - TEN_O_CLOCK).total_seconds() == 1.5
    far = replace(run.saga, placed_at=datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC))
    assert business_time(far, run.saga.started_ms + 1500) == LATEST  # as an earlier release took it
    assert business_time(run.saga, 0) == TEN_O_CLOCK  # a clock that was set back does not turn business time back


# ---- the definition


class Screened(Message, frozen=True, gc=False):
    """A service that is not there yet has screened the order."""

    order_id: str


class Withdrawn(Screened, frozen=True, gc=False):
    """It takes back, unasked, that it did."""


class Objected(Message, frozen=True, gc=False):
    """It refuses a command."""

    order_id: str
    command: str
    reason: str


class ScreenOrder(ReserveStock, frozen=True, gc=False):
    """What it is asked."""


@pytest.fixture
def newer(monkeypatch: pytest.MonkeyPatch) -> int:
    """A next version of the definition, with one more step: one more entry."""
    screen = Step(
        name="screen",
        local=False,
        each_line=False,
        action=lambda order, line, saga: ScreenOrder("a", order.order_id, 1),
        compensation=None,
        answers=(
            Answer("done", Screened),
            Answer("failed", Objected, answers_to=ScreenOrder),
            Answer("undone", Withdrawn, turns_back="withdrawn"),
        ),
    )
    assert isinstance(DEFINITIONS, Mapping)
    place, *others = DEFINITIONS[NEWEST]
    monkeypatch.setitem(DEFINITIONS, 99, (place, screen, *others))
    return 99


def test_a_new_step_is_one_entry_and_running_sagas_keep_the_version_they_began_with(newer: int) -> None:
    old, new = Run(), Run(newer)
    assert {kind for kind, _ in old.go()} == {"inventory.reserve"}
    assert new.go() == [("inventory.reserve", "screen")]  # the type of ScreenOrder
    assert len(new.go(Screened("o-1"))) == 3
    for run in (old, new):
        assert run.go(reserved(1), reserved(2), reserved(3)) == [("payment.charge", "charge")]
    assert (old.saga.version, new.saga.version) == (NEWEST, newer)


def test_the_definition_says_which_command_an_event_refuses(newer: int) -> None:
    run = Run(newer)
    run.go()
    assert run.go(Objected("o-1", "inventory.ship", "not ours")) == []
    assert (run.saga.reason, run.states()[1]) == (None, "asked")
    assert run.go(Objected("o-1", ScreenOrder.event_type, "embargo")) == [("order.cancel", "place:undo:0:1003")]
    assert (run.saga.reason, run.states()[1]) == ("embargo", "failed")


def test_the_definition_says_which_unasked_answer_turns_a_saga_back(newer: int) -> None:
    run = Run(newer)
    run.go()
    run.go(Screened("o-1"))
    assert run.go(Withdrawn("o-1")) == []  # lines were asked for: their answers tell what has to be undone
    assert (run.saga.reason, run.saga.state, run.states()[1]) == ("withdrawn", "compensating", "undone")


def test_a_stored_saga_without_its_definition_says_so() -> None:
    run = Run()
    with pytest.raises(KeyError):
        apply(replace(run.saga, version=98), RECEIVED, 0)


def test_all_lines_are_reserved_at_the_product_they_name() -> None:
    run = Run()
    _, commands = advance(run.saga, run.order, run.now_ms, POLICY)
    assert [(command.local, type(command.payload)) for command in commands] == [(False, ReserveStock)] * 3
    assert [command.key for command in commands] == list("abc")
