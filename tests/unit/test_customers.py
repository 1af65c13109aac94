"""A customer's statistics are what the customer's orders say, to the cent."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.customers import changed, count_change
from engine.declare.envelope import Metadata, new_envelope
from streams.events.money import Money
from streams.events.orders import OrderSummaryChanged
from tables.customers import CUSTOMERS, Customer, customer_view
from tests.unit.test_unit_of_work import new_work

START = datetime(2026, 11, 23, 10, tzinfo=UTC)
PLACED, CONFIRMED, CANCELLED = "order.placed", "order.confirmed", "order.cancelled"


def summary(
    change: str | None,
    amount: str = "19.99",
    currency: str = "USD",
    *,
    was_confirmed: bool = False,
    created_at: datetime = START,
) -> OrderSummaryChanged:
    confirmed_at = START if was_confirmed or change == CONFIRMED else None
    return OrderSummaryChanged(
        "o-1", "c-1", "any", 1, Money(Decimal(amount), currency), created_at, confirmed_at, change=change
    )


def after(*summaries: OrderSummaryChanged) -> Customer:
    customer = Customer("c-1")
    for each in summaries:
        customer = changed(customer, each)
    return customer


def figures(customer: Customer) -> tuple[int, int, int, list[str]]:
    return (
        customer.order_count,
        customer.confirmed_count,
        customer.cancelled_count,
        [f"{money.amount} {money.currency}" for money in customer.spent],
    )


def test_a_placed_order_is_counted_and_nothing_is_spent_yet() -> None:
    assert figures(after(summary(PLACED))) == (1, 0, 0, ["0.00 USD"])


def test_a_confirmed_order_is_spent() -> None:
    assert figures(after(summary(PLACED), summary(CONFIRMED))) == (1, 1, 0, ["19.99 USD"])


def test_an_order_cancelled_before_it_was_confirmed_takes_nothing_back() -> None:
    assert figures(after(summary(PLACED), summary(CANCELLED))) == (1, 0, 1, ["0.00 USD"])


def test_cancelling_a_confirmed_order_takes_it_out_of_what_is_confirmed_and_spent() -> None:
    customer = after(summary(PLACED), summary(CONFIRMED), summary(CANCELLED, was_confirmed=True))
    assert figures(customer) == (1, 0, 1, ["0.00 USD"])


@pytest.mark.parametrize("change", ["order.rejected", "order.shipped", None, "order.of_a_later_release"])
def test_what_is_none_of_these_changes_nothing_and_writes_nothing(change: str | None) -> None:
    work = new_work()
    event = new_envelope(
        summary(change, was_confirmed=True), event_id="e", aggregate_id="o-1", timestamp=START, metadata=Metadata()
    )
    count_change(event, work)
    assert work.is_empty()


def test_the_newest_order_counts_by_business_time_whatever_comes_last() -> None:
    early, late = START - timedelta(days=900), START + timedelta(days=1)
    customer = after(*(summary(PLACED, created_at=at) for at in (START, late, early)))
    assert customer.last_order_at == late


def total_spent(customer: Customer) -> str:
    spent = customer_view(customer)["total_spent"]
    assert spent is not None
    return spent["amount"]


def test_each_currency_has_a_sum_of_its_own_and_the_first_order_decides_which_is_the_total() -> None:
    orders = [summary(PLACED, "2.50", "GBP"), summary(PLACED, "1.00", "EUR"), summary(CONFIRMED, "1.00", "EUR")]
    customer = after(*orders, summary(CONFIRMED, "2.50", "GBP"), summary(PLACED, "9.00", "GBP"))
    assert figures(customer) == (3, 2, 0, ["2.50 GBP", "1.00 EUR"])
    view = customer_view(customer)
    assert view["total_spent"] == {"amount": "2.50", "currency": "GBP"}
    assert view["spent"] == [{"amount": "2.50", "currency": "GBP"}, {"amount": "1.00", "currency": "EUR"}]


def test_a_customer_with_one_currency_is_shown_with_the_promised_fields_only() -> None:
    assert customer_view(after(summary(PLACED), summary(CONFIRMED))) == {
        "customer_id": "c-1",
        "order_count": 1,
        "confirmed_count": 1,
        "cancelled_count": 0,
        "total_spent": {"amount": "19.99", "currency": "USD"},
        "last_order_at": "2026-11-23T10:00:00.000000Z",
    }


def test_the_largest_and_the_smallest_amounts_are_summed_without_rounding() -> None:
    amounts = ["9" * 28, "0.000001", "1." + "0" * 26 + "1"]
    customer = after(*(each for amount in amounts for each in (summary(PLACED, amount), summary(CONFIRMED, amount))))
    assert total_spent(customer) == "10000000000000000000000000000.000001" + "0" * 20 + "1"


def test_a_sum_of_nothing_has_no_exponent() -> None:
    assert total_spent(after(summary(PLACED, "1.0000000"))) == "0.0000000"


@given(
    st.lists(
        st.tuples(
            st.decimals("0.01", "99999.99", places=2),
            st.sampled_from(["USD", "EUR"]),
            st.sampled_from([(PLACED,), (PLACED, CONFIRMED), (PLACED, CANCELLED), (PLACED, CONFIRMED, CANCELLED)]),
        ),
        max_size=20,
    )
)
def test_any_orders_sum_up_to_what_a_recomputation_says(orders: list[tuple[Decimal, str, tuple[str, ...]]]) -> None:
    work = new_work()
    for amount, currency, changes in orders:
        for change in changes:
            payload = summary(change, str(amount), currency, was_confirmed=CONFIRMED in changes)
            event = new_envelope(payload, event_id="e", aggregate_id="o", timestamp=START, metadata=Metadata())
            count_change(event, work)
    customer = work.get(CUSTOMERS, "c-1") or Customer("c-1")
    kept = [(amount, currency) for amount, currency, changes in orders if changes == (PLACED, CONFIRMED)]
    assert figures(customer)[:3] == (len(orders), len(kept), sum(CANCELLED in changes for *_, changes in orders))
    assert {money.currency: money.amount for money in customer.spent} == {
        currency: sum((amount for amount, other in kept if other == currency), Decimal(0))
        for currency in {currency for _, currency, _ in orders}
    }
