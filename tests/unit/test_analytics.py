"""Analytics: each event adds what it says, and parts of any number of partitions add up to the whole."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agents.analytics import count_cancelled, count_confirmed, count_placed, count_rejected, count_shipped
from domain.analytics import (
    OTHER_REASONS,
    REASONS_MAX,
    AnalyticsState,
    Figures,
    ProductFigures,
    country_of,
    day_of,
    with_reason,
)
from domain.orders import Order
from engine.declare.envelope import Envelope, Metadata, new_envelope
from engine.declare.table import AnyTable
from engine.declare.unit_of_work import UnitOfWork
from engine.web.gathering import add_up
from streams.events.money import Money
from streams.events.orders import (
    OrderCancelled,
    OrderConfirmed,
    OrderItem,
    OrderPlaced,
    OrderRejected,
    OrderShipped,
)
from tables.analytics import (
    ANALYTICS_COUNTRIES,
    ANALYTICS_DAYS,
    ANALYTICS_PRODUCTS,
    ANALYTICS_STATE,
    ANALYTICS_TOTALS,
    NO_CURRENCY,
    STATE_KEY,
)
from tables.analytics.views import day_view, summary_view, top
from tables.orders import ORDERS
from tests.unit.test_unit_of_work import new_work

MONDAY = datetime(2026, 11, 23, 10, tzinfo=UTC)
TUESDAY, WEDNESDAY = MONDAY + timedelta(days=1), MONDAY + timedelta(days=2)
COUNT: dict[type, Callable[[Envelope[Any], UnitOfWork], None]] = {
    OrderPlaced: count_placed,
    OrderConfirmed: count_confirmed,
    OrderCancelled: count_cancelled,
    OrderShipped: count_shipped,
    OrderRejected: count_rejected,
}


class Life(NamedTuple):
    """An order, and when what happened to it (None: never)."""

    order_id: str
    lines: tuple[tuple[str, int, str], ...]  # product, quantity, price
    currency: str
    country: str | None
    placed_at: datetime
    confirmed_at: datetime | None = None
    cancelled_at: datetime | None = None
    shipped_at: datetime | None = None
    reason: str | None = None

    @property
    def total(self) -> Money:
        return Money(sum((quantity * Decimal(price) for _, quantity, price in self.lines), Decimal(0)), self.currency)

    @property
    def items(self) -> tuple[OrderItem, ...]:
        return tuple(
            OrderItem(product, quantity, Money(Decimal(price), self.currency))
            for product, quantity, price in self.lines
        )

    def order(self) -> Order:
        """The row at the end of its life: what the projection finds when it is far behind."""
        return Order(
            self.order_id,
            "c-1",
            "pending",
            self.items,
            1,
            self.total,
            self.country,
            None,
            self.placed_at,
            self.confirmed_at,
            self.cancelled_at,
            self.reason,
            1,
            self.shipped_at,
        )

    def events(self) -> list[Envelope[Any]]:
        placed = OrderPlaced(self.order_id, "c-1", self.items, self.total, self.country)
        events = [event(placed, self.placed_at)]
        if self.confirmed_at is not None:
            events.append(event(OrderConfirmed(self.order_id, "c-1", self.total), self.confirmed_at))
        if self.shipped_at is not None:
            events.append(event(OrderShipped(self.order_id, "c-1", self.total), self.shipped_at))
        if self.cancelled_at is not None:
            events.append(event(OrderCancelled(self.order_id, "c-1", self.reason, self.total), self.cancelled_at))
        return events


def event(payload: Any, timestamp: datetime) -> Envelope[Any]:
    return new_envelope(payload, event_id="e", aggregate_id=payload.order_id, timestamp=timestamp, metadata=Metadata())


def handle(work: UnitOfWork, *events: Envelope[Any]) -> None:
    for each in events:
        COUNT[type(each.payload)](each, work)


def projected(*lives: Life) -> UnitOfWork:
    """One partition with these orders, one after the other."""
    work = new_work()
    for life in lives:
        work.put(ORDERS, life.order_id, life.order())
        handle(work, *life.events())
    return work


def rows(work: UnitOfWork, table: AnyTable) -> dict[Any, Any]:
    return dict(work.rows.get(table, {}))


ONE = Life("o-1", (("A", 2, "1.50"), ("B", 1, "10.00"), ("A", 1, "1.50")), "GBP", "France", MONDAY)
TOTAL = Decimal("14.50")


# ---- each event


def test_a_placed_order_counts_on_its_day_in_its_country_and_once_for_each_product() -> None:
    work = projected(ONE)
    figures = Figures(placed_count=1, placed_revenue=TOTAL)
    assert rows(work, ANALYTICS_DAYS) == {("2026-11-23", "GBP"): figures}
    assert rows(work, ANALYTICS_TOTALS) == {"GBP": figures}
    assert rows(work, ANALYTICS_COUNTRIES) == {("France", "GBP"): figures}
    assert rows(work, ANALYTICS_PRODUCTS) == {
        ("A", "GBP"): ProductFigures(1, 3, Decimal("4.50")),
        ("B", "GBP"): ProductFigures(1, 1, Decimal("10.00")),
    }


def test_a_confirmation_brings_revenue_on_its_own_day() -> None:
    work = projected(ONE._replace(confirmed_at=TUESDAY))
    assert rows(work, ANALYTICS_DAYS) == {
        ("2026-11-23", "GBP"): Figures(placed_count=1, placed_revenue=TOTAL),
        ("2026-11-24", "GBP"): Figures(confirmed_count=1, confirmed_revenue=TOTAL),
    }
    assert rows(work, ANALYTICS_TOTALS)["GBP"].revenue == TOTAL
    assert rows(work, ANALYTICS_PRODUCTS)["A", "GBP"] == ProductFigures(1, 3, Decimal("4.50"), 3, Decimal("4.50"))


def test_a_cancellation_before_the_confirmation_is_no_refund() -> None:
    work = projected(ONE._replace(cancelled_at=TUESDAY))
    assert rows(work, ANALYTICS_DAYS)["2026-11-24", "GBP"] == Figures(cancelled_count=1, cancelled_revenue=TOTAL)
    assert rows(work, ANALYTICS_TOTALS)["GBP"].revenue == 0
    assert rows(work, ANALYTICS_PRODUCTS)["A", "GBP"] == ProductFigures(1, 3, Decimal("4.50"))


def test_a_cancellation_after_the_confirmation_takes_the_revenue_back_on_its_own_day() -> None:
    work = projected(ONE._replace(confirmed_at=TUESDAY, cancelled_at=WEDNESDAY))
    days = rows(work, ANALYTICS_DAYS)
    assert days["2026-11-24", "GBP"] == Figures(confirmed_count=1, confirmed_revenue=TOTAL)
    assert days["2026-11-25", "GBP"] == Figures(cancelled_count=1, refunded_count=1, refunded_revenue=TOTAL)
    assert days["2026-11-25", "GBP"].revenue == -TOTAL
    for table in (ANALYTICS_TOTALS, ANALYTICS_COUNTRIES):
        assert [figures.revenue for figures in rows(work, table).values()] == [0]
    assert rows(work, ANALYTICS_PRODUCTS)["A", "GBP"] == ProductFigures(1, 3, Decimal("4.50"))


def test_a_shipped_order_counts_on_its_day_and_in_its_country() -> None:
    work = projected(ONE._replace(confirmed_at=MONDAY, shipped_at=TUESDAY))
    assert rows(work, ANALYTICS_DAYS)["2026-11-24", "GBP"] == Figures(shipped_count=1)
    assert rows(work, ANALYTICS_COUNTRIES)["France", "GBP"].shipped_count == 1


def test_only_refused_orders_are_counted_as_rejected_and_they_have_no_currency() -> None:
    work = new_work()
    handle(work, event(OrderRejected("o-1", "c-1", "order.place", "no_items", "nothing in it"), MONDAY))
    handle(work, event(OrderRejected("o-2", None, "order.cancel", "not_placed", "nothing there"), TUESDAY))
    assert rows(work, ANALYTICS_DAYS) == {("2026-11-23", NO_CURRENCY): Figures(rejected_count=1)}
    assert rows(work, ANALYTICS_TOTALS) == {NO_CURRENCY: Figures(rejected_count=1)}
    assert rows(work, ANALYTICS_COUNTRIES) == {}
    assert day_view("2026-11-23", NO_CURRENCY, Figures(rejected_count=1))["currency"] is None


def test_an_event_of_an_order_that_is_not_there_is_an_error_and_not_a_guess() -> None:
    with pytest.raises(ValueError, match="no order o-9"):
        handle(new_work(), event(OrderConfirmed("o-9", "c-1", Money(TOTAL, "GBP")), MONDAY))


@pytest.mark.parametrize("country", [None, ""])
def test_an_order_without_a_country_is_of_an_unknown_one(country: str | None) -> None:
    assert list(rows(projected(ONE._replace(country=country)), ANALYTICS_COUNTRIES)) == [("unknown", "GBP")]


def test_a_country_that_is_none_makes_no_long_key() -> None:
    assert len(country_of("x" * 100_000)) == 128


# ---- days


@pytest.mark.parametrize(
    ("hour", "offset", "day"),
    [(0, 0, "2026-11-23"), (23, 0, "2026-11-23"), (0, 1, "2026-11-22"), (23, -2, "2026-11-24")],
)
def test_a_day_is_one_in_utc(hour: int, offset: int, day: str) -> None:
    zone = timezone(timedelta(hours=offset))
    assert day_of(datetime(2026, 11, 23, hour, 30, tzinfo=zone)) == day


def test_late_events_are_counted_on_their_own_day_and_as_late() -> None:
    work = projected(
        ONE._replace(placed_at=TUESDAY),
        ONE._replace(order_id="o-2", placed_at=MONDAY),
        ONE._replace(order_id="o-3", placed_at=TUESDAY),
        ONE._replace(order_id="o-4", placed_at=MONDAY, confirmed_at=WEDNESDAY),
    )
    days = rows(work, ANALYTICS_DAYS)
    assert {key: (figures.placed_count, figures.late_count) for key, figures in days.items()} == {
        ("2026-11-23", "GBP"): (2, 2),
        ("2026-11-24", "GBP"): (2, 0),
        ("2026-11-25", "GBP"): (0, 0),
    }
    assert rows(work, ANALYTICS_TOTALS)["GBP"].late_count == 2
    assert rows(work, ANALYTICS_STATE)[STATE_KEY].newest_day == "2026-11-25"


# ---- reasons


def test_reasons_count_together_when_only_their_numbers_differ() -> None:
    state = AnalyticsState()
    for reason in ("invoice C536379", "invoice C7", None, "", "out_of_stock"):
        state = with_reason(state, reason)
    assert state.cancel_reasons == {"invoice C#": 2, "": 2, "out_of_stock": 1}


def test_reasons_beyond_the_most_that_are_kept_are_other_ones() -> None:
    state = AnalyticsState()
    names = ["abcdefghijklmnopqrstuvwxyz"[n % 26] * (1 + n // 26) for n in range(REASONS_MAX + 20)]
    for reason in [*names, names[0], "x" * 100_000]:
        state = with_reason(state, reason)
    assert len(state.cancel_reasons) == REASONS_MAX + 1
    assert state.cancel_reasons[OTHER_REASONS] == 21
    assert state.cancel_reasons[names[0]] == 2


# ---- answers


def test_the_summary_has_shares_and_one_revenue_per_currency() -> None:
    totals = {
        "GBP": Figures(3, 2, 1, 1, 1, 0, 0, Decimal("30.00"), Decimal("20.00"), Decimal("0"), Decimal("5.00")),
        "EUR": Figures(placed_count=1, placed_revenue=Decimal("1.00")),
        NO_CURRENCY: Figures(rejected_count=4, late_count=1),
    }
    summary = summary_view(totals, AnalyticsState("2026-11-23", {"": 1}))
    assert (summary["placed_count"], summary["rejected_count"], summary["late_count"]) == (4, 4, 1)
    assert [(money["currency"], money["revenue"]) for money in summary["revenue"]] == [("EUR", "0"), ("GBP", "15.00")]
    assert [(step["step"], step["count"], step["share"]) for step in summary["funnel"]] == [
        ("placed", 4, 1.0),
        ("confirmed", 2, 0.5),
        ("shipped", 1, 0.25),
        ("cancelled", 1, 0.25),
    ]
    assert summary["cancel_reasons"] == [{"reason": None, "count": 1, "share": 1.0}]


def test_the_summary_of_nothing_is_all_zeros() -> None:
    summary = summary_view({}, AnalyticsState())
    assert {step["share"] for step in summary["funnel"]} == {0.0}
    assert (summary["revenue"], summary["cancel_reasons"]) == ([], [])


@given(st.lists(st.integers(0, 50), max_size=1300), st.integers(1, 20))
async def test_the_first_of_many_are_the_first_of_all(values: list[int], limit: int) -> None:
    assert await top(values, limit, lambda value: value) == sorted(values)[:limit]


@pytest.mark.parametrize(
    ("table", "key"),
    [
        (ANALYTICS_DAYS, ("2026-11-23", NO_CURRENCY)),
        (ANALYTICS_PRODUCTS, ("é\0-" * 42, "GBP")),
        (ANALYTICS_COUNTRIES, ("", "EUR")),
    ],
)
def test_keys_are_stored_and_read_back(table: AnyTable, key: tuple[str, str]) -> None:
    assert table.key.decode(table.key.encode(key)) == key


# ---- many partitions


TIMES = st.integers(0, 5).map(lambda days: MONDAY + timedelta(days=days))
LIVES = st.lists(
    st.builds(
        Life,
        order_id=st.uuids().map(str),
        lines=st.lists(
            st.tuples(st.sampled_from("ABC"), st.integers(1, 10**9), st.decimals("0.01", "9" * 15, places=2).map(str)),
            min_size=1,
            max_size=4,
        ).map(tuple),
        currency=st.sampled_from(["GBP", "EUR"]),
        country=st.sampled_from([None, "France", "Norway"]),
        placed_at=TIMES,
        confirmed_at=st.none() | TIMES,
        cancelled_at=st.none() | TIMES,
        shipped_at=st.none() | TIMES,
        reason=st.sampled_from([None, "out_of_stock", "invoice 7"]),
    ),
    max_size=15,
    unique_by=lambda life: life.order_id,
)


@given(LIVES, st.integers(1, 5), st.randoms(use_true_random=False))
def test_parts_of_any_partitions_add_up_to_the_same_as_a_recomputation(
    lives: list[Life], partitions: int, choice: Any
) -> None:
    works = [new_work() for _ in range(partitions)]
    waiting = []
    for life in lives:
        work = choice.choice(works)
        work.put(ORDERS, life.order_id, life.order())
        waiting.append((work, life.events()))
    while waiting:  # events of an order keep their order, those of different orders come in any
        work, events = choice.choice(waiting)
        handle(work, events.pop(0))
        waiting = [(work, events) for work, events in waiting if events]

    def gathered(table: AnyTable) -> dict[Any, Any]:
        sums: dict[Any, Any] = {}
        for work in works:
            add_up(sums, rows(work, table).items())
        return sums

    assert without_late(gathered(ANALYTICS_DAYS)) == recomputed(lives, lambda life, day: (day, life.currency))
    assert without_late(gathered(ANALYTICS_TOTALS)) == recomputed(lives, lambda life, day: life.currency)
    assert without_late(gathered(ANALYTICS_COUNTRIES)) == recomputed(
        lives, lambda life, day: (life.country or "unknown", life.currency)
    )
    assert {key: (p.order_count, p.quantity, p.placed_revenue, p.confirmed_quantity, p.revenue)
            for key, p in gathered(ANALYTICS_PRODUCTS).items()} == recomputed_products(lives)  # fmt: skip
    state = gathered(ANALYTICS_STATE).get(STATE_KEY, AnalyticsState())
    assert state.newest_day == max((day for day, _ in gathered(ANALYTICS_DAYS)), default="")
    reasons = [(life.reason or "").replace("7", "#") for life in lives if life.cancelled_at is not None]
    assert state.cancel_reasons == {reason: reasons.count(reason) for reason in set(reasons)}


def without_late(sums: dict[Any, Figures]) -> dict[Any, tuple[Any, ...]]:
    """Figures but for how many came late, which depends on what came before."""
    return {
        key: (
            *(f.placed_count, f.confirmed_count, f.shipped_count, f.cancelled_count, f.refunded_count),
            *(f.placed_revenue, f.confirmed_revenue, f.cancelled_revenue, f.refunded_revenue),
        )
        for key, f in sums.items()
    }


def recomputed(lives: Iterable[Life], key_of: Callable[[Life, str], Any]) -> dict[Any, tuple[Any, ...]]:
    """The same by counting all orders at once: whole cents, so that sums are of integers."""
    sums: dict[Any, list[int]] = {}

    def note(life: Life, at: datetime | None, *columns: int) -> None:
        if at is not None:
            row = sums.setdefault(key_of(life, f"{at:%Y-%m-%d}"), [0] * 9)
            for column in columns:
                row[column] += 1 if column < 5 else cents(life.total.amount)

    for life in lives:
        note(life, life.placed_at, 0, 5)
        note(life, life.confirmed_at, 1, 6)
        note(life, life.shipped_at, 2)
        note(life, life.cancelled_at, 3, *((4, 8) if life.confirmed_at is not None else (7,)))
    return {key: (*row[:5], *(Decimal(each).scaleb(-2) for each in row[5:])) for key, row in sums.items()}


def recomputed_products(lives: Iterable[Life]) -> dict[Any, tuple[Any, ...]]:
    sums: dict[Any, list[int]] = {}
    for life in lives:
        is_sold = life.confirmed_at is not None and life.cancelled_at is None
        for product, quantity, price in life.lines:
            row = sums.setdefault((product, life.currency), [0] * 5)
            row[1] += quantity
            row[2] += quantity * cents(price)
            row[3] += quantity * is_sold
            row[4] += quantity * cents(price) * is_sold
        for product in {product for product, *_ in life.lines}:
            sums[product, life.currency][0] += 1
    return {
        key: (orders, quantity, Decimal(placed).scaleb(-2), sold, Decimal(revenue).scaleb(-2))
        for key, (orders, quantity, placed, sold, revenue) in sums.items()
    }


def cents(amount: Decimal | str) -> int:
    return int(Decimal(amount) * 100)
