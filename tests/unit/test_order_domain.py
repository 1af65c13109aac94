"""What may happen to an order, what it becomes, and that its history tells the whole state."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from domain.orders import (
    CANCELLED,
    CONFIRMED,
    PENDING,
    QUANTITY_MAX,
    REJECTED,
    UNKNOWN,
    InvalidOrderState,
    Order,
    decide,
    evolve,
    refusal,
    replay,
)
from engine.declare.envelope import Envelope, Metadata, follow_up, new_envelope
from streams.events.money import Money
from streams.events.orders import (
    CancelOrder,
    ConfirmOrder,
    OrderCancelled,
    OrderCommand,
    OrderConfirmed,
    OrderEvent,
    OrderItem,
    OrderPlaced,
    OrderRejected,
    PlaceOrder,
    registry,
)

START = datetime(2026, 11, 23, 10, tzinfo=UTC)


def money(amount: str, currency: str = "USD") -> Money:
    return Money(Decimal(amount), currency)


def item(quantity: int = 2, price: str = "19.99", currency: str = "USD") -> OrderItem:
    return OrderItem("SKU-1", quantity, money(price, currency))


def place(*items: OrderItem, total: Money | None = None) -> PlaceOrder:
    return PlaceOrder("order-1", "customer-1", items, total, "France", None)


PLACE = place(item())
CONFIRM = ConfirmOrder("order-1")
CANCEL = CancelOrder("order-1", "changed my mind")


class History:
    """An order and its events, driven by commands as the service drives it; one minute passes per command."""

    def __init__(self) -> None:
        self.order: Order | None = None
        self.events: list[Envelope[Any]] = []

    def handle(self, command: OrderCommand) -> tuple[OrderEvent, ...]:
        cause = new_envelope(
            command,
            event_id=f"command-{len(self.events)}",
            aggregate_id=command.order_id,
            timestamp=START + timedelta(minutes=len(self.events)),
            metadata=Metadata(),
        )
        try:
            decided: tuple[OrderEvent, ...] = decide(self.order, command)
        except InvalidOrderState as error:
            decided = (refusal(command, error),)
        for step, payload in enumerate(decided):
            version = len(self.events) + 1
            event = follow_up(cause, payload, step=str(step), aggregate_id=command.order_id, aggregate_version=version)
            self.events.append(event)
            self.order = evolve(self.order, event)
        return decided


def after(*commands: OrderCommand) -> History:
    history = History()
    for command in commands:
        history.handle(command)
    return history


def refused(command: OrderCommand, *earlier: OrderCommand) -> str:
    """Return the reason for which a command is refused after earlier ones."""
    with pytest.raises(InvalidOrderState) as error:
        decide(after(*earlier).order, command)
    assert error.value.detail
    return error.value.reason


def test_placing_an_order_computes_its_total() -> None:
    (placed,) = decide(None, place(item(2, "19.99"), item(1, "0.52")))
    assert placed == OrderPlaced(
        "order-1", "customer-1", (item(2, "19.99"), item(1, "0.52")), money("40.50"), "France", None
    )
    assert isinstance(placed, OrderPlaced)
    assert str(placed.total.amount) == "40.50"


def test_a_total_that_is_the_sum_is_accepted() -> None:
    assert decide(None, place(item(), total=money("39.98"))) == decide(None, PLACE)


@pytest.mark.parametrize("total", [money("39.99"), money("39.98", "EUR")])
def test_a_total_that_is_not_the_sum_is_refused(total: Money) -> None:
    assert refused(place(item(), total=total)) == "total_mismatch"


@pytest.mark.parametrize(
    ("items", "reason"),
    [
        ((), "no_items"),
        ((item(quantity=0),), "invalid_quantity"),
        ((item(quantity=-1),), "invalid_quantity"),
        ((item(quantity=QUANTITY_MAX + 1),), "invalid_quantity"),
        ((item(price="0.00"),), "invalid_price"),
        ((item(price="-1"),), "invalid_price"),
        ((item(), item(currency="EUR")), "mixed_currencies"),
        ((item(currency="usd"),), "invalid_currency"),
        ((item(currency="XXX"),), "invalid_currency"),
        ((item(price="100.50", currency="JPY"),), "invalid_price"),
        ((item(price="0.005"),), "invalid_price"),
        (
            (
                item(),
                item(price="1.999"),
            ),
            "invalid_price",
        ),
        ((item(price="1" * 29),), "amount_out_of_range"),
        ((item(price="9" * 27), item(price="0.01")), "amount_out_of_range"),
    ],
)
def test_an_order_that_breaks_a_rule_is_refused(items: tuple[OrderItem, ...], reason: str) -> None:
    assert refused(place(*items)) == reason


def test_a_shop_that_prices_in_fractions_takes_more_decimals() -> None:
    (placed,) = decide(None, place(item(quantity=3, price="0.005")), price_decimals=3)
    assert isinstance(placed, OrderPlaced)
    assert placed.total == money("0.015")


def test_an_order_is_placed_once() -> None:
    assert refused(PLACE, PLACE) == "already_placed"
    assert refused(PLACE, PLACE, CONFIRM) == "already_placed"
    assert refused(PLACE, PLACE, CANCEL) == "already_placed"


def test_a_pending_order_can_be_confirmed() -> None:
    assert decide(after(PLACE).order, CONFIRM) == (OrderConfirmed("order-1", "customer-1", money("39.98")),)


def test_only_a_pending_order_can_be_confirmed() -> None:
    assert refused(CONFIRM) == "not_placed"
    assert refused(CONFIRM, CONFIRM) == "not_placed"
    assert refused(CONFIRM, PLACE, CONFIRM) == "already_confirmed"
    assert refused(CONFIRM, PLACE, CANCEL) == "already_cancelled"
    assert refused(CONFIRM, place()) == "already_rejected"


def test_a_pending_and_a_confirmed_order_can_be_cancelled() -> None:
    cancelled = (OrderCancelled("order-1", "customer-1", "changed my mind", money("39.98")),)
    assert decide(after(PLACE).order, CANCEL) == cancelled
    assert decide(after(PLACE, CONFIRM).order, CANCEL) == cancelled


def test_no_other_order_can_be_cancelled() -> None:
    assert refused(CANCEL) == "not_placed"
    assert refused(CANCEL, PLACE, CANCEL) == "already_cancelled"
    assert refused(CANCEL, place()) == "already_rejected"


def test_an_order_remembers_what_happened_and_when() -> None:
    order = after(PLACE, CONFIRM, CANCEL).order
    assert order == Order(
        order_id="order-1",
        customer_id="customer-1",
        status=CANCELLED,
        items=(item(),),
        item_count=2,
        total=money("39.98"),
        country="France",
        email=None,
        created_at=START,
        confirmed_at=START + timedelta(minutes=1),
        cancelled_at=START + timedelta(minutes=2),
        cancel_reason="changed my mind",
        version=3,
    )


def test_an_order_whose_placing_was_refused_is_rejected_for_good() -> None:
    history = after(place())
    assert history.order is not None
    assert (history.order.status, history.order.customer_id, history.order.version) == (REJECTED, "customer-1", 1)
    assert history.handle(PLACE) == (
        OrderRejected(
            "order-1",
            "customer-1",
            "order.place",
            "already_rejected",
            "an order was rejected under this id; place it under a new one",
        ),
    )
    assert history.order is not None
    assert history.order.status == REJECTED


def test_an_order_of_which_only_other_commands_were_refused_can_still_be_placed() -> None:
    history = after(CANCEL, CONFIRM)
    assert history.order is not None
    assert (history.order.status, history.order.version, history.order.customer_id) == (UNKNOWN, 2, None)
    history.handle(PLACE)
    assert history.order is not None
    assert (history.order.status, history.order.version) == (PENDING, 3)


def test_placing_that_is_refused_after_other_refusals_rejects_the_order() -> None:
    order = after(CANCEL, place()).order
    assert order is not None
    assert (order.status, order.version) == (REJECTED, 2)


@pytest.mark.parametrize("command", [PLACE, place(), CONFIRM])
def test_a_refused_command_changes_only_the_version_of_a_placed_order(command: OrderCommand) -> None:
    history = after(PLACE, CONFIRM)
    before = history.order
    assert before is not None
    history.handle(command)
    assert history.order == msgspec.structs.replace(before, version=3)


def test_a_refusal_tells_command_and_reason() -> None:
    error = InvalidOrderState("already_cancelled", "the order is cancelled")
    assert refusal(CANCEL, error) == OrderRejected(
        "order-1", None, "order.cancel", "already_cancelled", "the order is cancelled"
    )
    assert refusal(PLACE, error).customer_id == "customer-1"


def test_the_state_without_history_is_none() -> None:
    assert replay([]) is None


def test_an_event_that_is_not_the_next_one_is_refused() -> None:
    placed, confirmed, cancelled = after(PLACE, CONFIRM, CANCEL).events
    with pytest.raises(ValueError, match="expected event 2 of its history, got 3"):
        replay([placed, cancelled])
    with pytest.raises(ValueError, match="expected event 2 of its history, got 1"):
        replay([placed, placed])
    with pytest.raises(ValueError, match="expected event 1 of its history, got 2"):
        replay([confirmed])


@pytest.mark.parametrize("payload", [decide(after(PLACE).order, CONFIRM)[0], decide(after(PLACE).order, CANCEL)[0]])
def test_a_history_that_no_decision_could_have_written_is_refused(payload: OrderEvent) -> None:
    (placed,) = after(PLACE).events
    orphan = follow_up(placed, payload, step="x", aggregate_id="order-1", aggregate_version=1)
    with pytest.raises(ValueError, match="before anything was placed"):
        evolve(None, orphan)
    twice = follow_up(placed, placed.payload, step="x", aggregate_id="order-1", aggregate_version=2)
    with pytest.raises(ValueError, match="placed twice"):
        replay([placed, twice])


TRANSITIONS = {
    (None, PENDING),
    (None, REJECTED),
    (None, UNKNOWN),
    (UNKNOWN, PENDING),
    (UNKNOWN, REJECTED),
    (PENDING, CONFIRMED),
    (PENDING, CANCELLED),
    (CONFIRMED, CANCELLED),
}

prices = st.decimals(-1, 10**6, places=2).map(lambda amount: Money(amount, "EUR"))
order_items = st.builds(OrderItem, st.sampled_from(["a", "b"]), st.integers(-1, 5), prices)
commands: st.SearchStrategy[OrderCommand] = st.one_of(
    st.builds(PlaceOrder, st.just("o"), st.just("c"), st.lists(order_items, max_size=3).map(tuple), st.none() | prices),
    st.builds(PlaceOrder, st.just("o"), st.just("c"), st.just((item(),))),
    st.just(ConfirmOrder("o")),
    st.builds(CancelOrder, st.just("o"), st.none() | st.text(max_size=5)),
)


@given(sequence=st.lists(commands, max_size=12))
@settings(deadline=None)
def test_any_commands_give_legal_transitions_contiguous_versions_and_a_history_that_tells_the_state(
    sequence: list[OrderCommand],
) -> None:
    history = History()
    for command in sequence:
        before = history.order.status if history.order is not None else None
        history.handle(command)
        assert history.order is not None
        now = history.order.status
        assert now == before or (before, now) in TRANSITIONS
        assert history.order.version == len(history.events)
    assert [event.aggregate_version for event in history.events] == list(range(1, len(history.events) + 1))
    assert replay(history.events) == history.order
    known = registry()
    assert replay(known.decode(known.encode(event)) for event in history.events) == history.order


@given(sequence=st.lists(commands, max_size=8))
@settings(deadline=None)
def test_a_placed_order_keeps_the_sum_of_its_items_as_total(sequence: list[OrderCommand]) -> None:
    order = after(*sequence).order
    if order is None or order.total is None:
        return
    assert order.total.amount == sum(line.quantity * line.price.amount for line in order.items)
    assert order.item_count == sum(line.quantity for line in order.items)
