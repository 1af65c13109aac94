"""Reconciliation: sums follow from events alone, and whatever does not add up is shown with its difference."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from agents.reconciliation import orders, payments, service, stock
from domain.analytics import Figures
from domain.orders import Order
from engine.declare.agent import Agent
from engine.declare.envelope import Message, Metadata, new_envelope
from engine.declare.unit_of_work import UnitOfWork
from streams.app import shop_services
from streams.events.inventory import StockAdded, StockReleased, StockReserved, StockShipped
from streams.events.money import Money
from streams.events.orders import (
    OrderCancelled,
    OrderConfirmed,
    OrderPlaced,
    OrderRejected,
    OrderShipped,
    SagaStyle,
)
from streams.events.payments import PaymentFailed, PaymentReceived, PaymentRefunded, PaymentRefundFailed
from tables.analytics import NO_CURRENCY
from tables.orders import ORDERS
from tables.reconciliation import ORDER_SUMS, PAYMENT_SUMS, STOCK_KEY, STOCK_SUMS, OrderSums, PaymentSums, StockSums
from tables.reconciliation.views import HOPS, SAGA_STATES, Books, Shelf, checks_of, reconciliation_view
from tests.unit.test_unit_of_work import new_work

NOW = datetime(2026, 11, 23, 10, tzinfo=UTC)
GBP = Money(Decimal("14.50"), "GBP")
TOTAL = GBP.amount


def order(saga: SagaStyle | None = "orchestration", confirmed_at: datetime | None = NOW, pieces: int = 4) -> Order:
    """The row of order o-1, which may be newer than the event at hand."""
    return Order(
        "o-1", "c-1", "pending", (), pieces, GBP, None, None, NOW, confirmed_at, None, None, 3, saga=saga
    )  # fmt: skip


PLACED, CONFIRMED = OrderPlaced("o-1", "c-1", (), GBP), OrderConfirmed("o-1", "c-1", GBP)
CANCELLED, SHIPPED = OrderCancelled("o-1", "c-1", None, GBP), OrderShipped("o-1", "c-1", GBP)


def handle(agent: Agent[Any], work: UnitOfWork, *events: Message) -> None:
    for payload in events:
        if type(payload) in agent:
            envelope = new_envelope(payload, event_id="e", aggregate_id="o-1", timestamp=NOW, metadata=Metadata())
            agent.handlers[type(payload)](envelope, work)


def order_sums(row: Order, *events: Message) -> OrderSums:
    work = new_work()
    work.put(ORDERS, "o-1", row)
    handle(orders, work, *events)
    return work.rows[ORDER_SUMS]["GBP"]  # type: ignore[no-any-return]


# ---- events


def test_a_confirmed_order_holds_its_pieces_and_is_charged() -> None:
    assert order_sums(order(), PLACED, CONFIRMED) == OrderSums(
        placed_count=1, confirmed_count=1, held=4, placed=TOTAL, confirmed=TOTAL, charged=TOTAL
    )


def test_an_order_cancelled_after_it_was_confirmed_holds_nothing_any_more() -> None:
    assert order_sums(order(), PLACED, CONFIRMED, CANCELLED) == OrderSums(
        placed_count=1, cancelled_count=1, placed=TOTAL, cancelled=TOTAL
    )


def test_an_order_cancelled_before_it_was_confirmed_takes_nothing_away() -> None:
    assert order_sums(order(confirmed_at=None), PLACED, CANCELLED) == OrderSums(
        placed_count=1, cancelled_count=1, placed=TOTAL, cancelled=TOTAL
    )


def test_pieces_of_a_shipped_order_are_held_no_more() -> None:
    found = order_sums(order(), PLACED, CONFIRMED, SHIPPED)
    assert (found.held, found.shipped, found.confirmed, found.charged) == (0, 4, TOTAL, TOTAL)


@pytest.mark.parametrize(
    ("events", "confirmed"),
    [
        ((PLACED, CONFIRMED), TOTAL),
        ((PLACED, CONFIRMED, SHIPPED), TOTAL),
        ((PLACED, CONFIRMED, CANCELLED), Decimal(0)),
    ],
)
def test_an_order_without_a_saga_is_neither_charged_nor_holds_pieces(
    events: tuple[Message, ...], confirmed: Decimal
) -> None:
    found = order_sums(order(saga=None), *events)
    assert (found.confirmed, found.charged) == (confirmed, Decimal(0))
    assert (found.held, found.shipped) == (0, 0)


def test_what_is_refused_changes_no_order() -> None:
    refused = OrderRejected("o-1", None, "order.confirm", "saga_running", "")
    assert order_sums(order(), PLACED, refused) == OrderSums(placed_count=1, placed=TOTAL)


def test_pieces_come_and_go_and_reserving_moves_none() -> None:
    work = new_work()
    handle(
        stock,
        work,
        StockAdded("p", 10, 10),
        StockReserved("p", "o-1", 1, 4),
        StockReleased("p", "o-1", 1, 4),
        StockAdded("p", -3, 7),
        StockShipped("p", "o-1", 2, 2),
    )
    assert work.rows[STOCK_SUMS] == {STOCK_KEY: StockSums(stocked=7, shipped=2)}


def test_money_comes_and_goes_by_currency_and_what_fails_moves_none() -> None:
    work = new_work()
    handle(
        payments,
        work,
        PaymentReceived("o-1", "c-1", GBP, "r"),
        PaymentReceived("o-2", "c-1", Money(Decimal("0.001"), "EUR"), "r"),
        PaymentReceived("o-3", "c-1", Money(Decimal("0.10"), "GBP"), "r"),
        PaymentRefunded("o-1", "c-1", GBP, "r"),
        PaymentFailed("o-4", "c-1", GBP, "card_declined"),
        PaymentRefundFailed("o-3", "c-1", GBP, "closed"),
    )
    assert work.rows[PAYMENT_SUMS] == {
        "GBP": PaymentSums(Decimal("14.60"), TOTAL),
        "EUR": PaymentSums(Decimal("0.001")),
    }
    assert work.rows[PAYMENT_SUMS]["GBP"].held == Decimal("0.10")


_figures = st.builds(
    OrderSums,
    *[st.integers(-(10**6), 10**6)] * 5,
    *[st.decimals(-(10**26), 10**26, allow_nan=False, places=3)] * 4,
)


@given(st.lists(_figures, min_size=1, max_size=8), st.randoms())
def test_parts_of_partitions_add_up_to_the_same_in_any_order(parts: list[OrderSums], random: Any) -> None:
    def total(rows: list[OrderSums]) -> OrderSums:
        found = OrderSums()
        for row in rows:
            found = found.plus(row)
        return found

    shuffled = list(parts)
    random.shuffle(shuffled)
    assert total(shuffled) == total(parts)
    assert total(parts).held == sum(part.held for part in parts)
    assert Fraction(total(parts).charged) == sum(Fraction(part.charged) for part in parts)


# ---- the view


SETTLED = dict.fromkeys(SAGA_STATES, 0) | {"completed": 2, "compensated": 1}
GOOD = Books(
    orders={
        "GBP": OrderSums(2, 1, 1, 3, 1, Decimal("20"), Decimal("15.5"), Decimal("4.5"), Decimal("15.5")),
        "EUR": OrderSums(1, 1, 0, 2, 0, Decimal("1"), Decimal("1"), Decimal(0), Decimal("1")),
    },
    payments={"GBP": PaymentSums(Decimal("20.0"), Decimal("4.50")), "EUR": PaymentSums(Decimal("1.00"))},
    analytics={
        "GBP": Figures(confirmed_revenue=Decimal("20"), refunded_revenue=Decimal("4.5")),
        "EUR": Figures(confirmed_revenue=Decimal("1")),
        NO_CURRENCY: Figures(rejected_count=7),
    },
    stock=StockSums(stocked=10, shipped=1),
    shelf=Shelf(on_hand=9, reserved=5),
    sagas=SETTLED,
)


def failing(books: Books) -> Mapping[tuple[str, str | None], Decimal]:
    return {(check.check, check.currency): check.difference for check in checks_of(books) if check.difference}


def test_books_that_agree_add_up_whatever_the_scale_of_their_figures() -> None:
    view = reconciliation_view(GOOD)
    assert (view["adds_up"], view["is_settled"]) == (True, True)
    assert [(check["check"], check["currency"], check["left"], check["right"]) for check in view["checks"]] == [
        ("stocked = on hand + shipped", None, "10", "10"),
        ("reserved = pieces of confirmed orders", None, "5", "5"),
        ("shipped = pieces of shipped orders", None, "1", "1"),
        ("charged - refunded = confirmed orders", "EUR", "1.00", "1"),
        ("confirmed orders = revenue in analytics", "EUR", "1", "1"),
        ("charged - refunded = confirmed orders", "GBP", "15.50", "15.5"),
        ("confirmed orders = revenue in analytics", "GBP", "15.5", "15.5"),
    ]
    assert view["stock"] == {"stocked": 10, "shipped": 1, "on_hand": 9, "reserved": 5}
    assert view["payments"][1] == {"currency": "GBP", "charged": "20.0", "refunded": "4.50", "held": "15.50"}
    assert view["analytics"] == [{"currency": "EUR", "revenue": "1"}, {"currency": "GBP", "revenue": "15.5"}]
    assert view["sagas"] == SETTLED


CENT = Decimal("0.01")


@pytest.mark.parametrize(
    ("books", "expected"),
    [
        (GOOD._replace(stock=StockSums(11, 1)), {("stocked = on hand + shipped", None): 1}),
        (GOOD._replace(shelf=Shelf(9, 4)), {("reserved = pieces of confirmed orders", None): -1}),
        (
            GOOD._replace(stock=StockSums(10, 2), shelf=Shelf(8, 5)),
            {("shipped = pieces of shipped orders", None): 1},
        ),
        (
            GOOD._replace(payments={**GOOD.payments, "GBP": PaymentSums(Decimal("20.01"), Decimal("4.50"))}),
            {("charged - refunded = confirmed orders", "GBP"): CENT},
        ),
        (
            GOOD._replace(payments={**GOOD.payments, "USD": PaymentSums(CENT)}),
            {("charged - refunded = confirmed orders", "USD"): CENT},
        ),
        (
            GOOD._replace(analytics={"GBP": GOOD.analytics["GBP"]}),
            {("confirmed orders = revenue in analytics", "EUR"): 1},
        ),
        (
            GOOD._replace(orders={**GOOD.orders, "EUR": replace(GOOD.orders["EUR"], held=3)}),
            {("reserved = pieces of confirmed orders", None): -1},
        ),
    ],
)
def test_each_piece_and_cent_too_many_or_too_few_is_found(
    books: Books, expected: Mapping[tuple[str, str | None], Decimal]
) -> None:
    assert failing(books) == expected
    view = reconciliation_view(books)
    assert not view["adds_up"]
    assert [check["holds"] for check in view["checks"]].count(False) == len(expected)


@pytest.mark.parametrize(
    ("state", "is_settled"),
    [("running", False), ("compensating", False), ("compensation_failed", True), ("completed", True)],
)
def test_it_is_settled_once_no_saga_goes_on_by_itself(state: str, is_settled: bool) -> None:
    assert reconciliation_view(GOOD._replace(sagas=SETTLED | {state: 1}))["is_settled"] is is_settled


def test_nothing_at_all_adds_up() -> None:
    view = reconciliation_view(Books({}, {}, {}, StockSums(), Shelf(0, 0), dict.fromkeys(SAGA_STATES, 0)))
    assert view["adds_up"]
    assert [(check["left"], check["right"]) for check in view["checks"]] == [("0", "0")] * 3


def test_it_waits_for_all_agents_whose_sums_it_compares() -> None:
    agents = {name: agent.topic for found in shop_services() for name, agent in found.agents.items()}
    assert all(agents[hop.name] is hop.topic for hop in HOPS)
    assert {hop.name for hop in HOPS} == {*service.agents, "project-analytics"}
