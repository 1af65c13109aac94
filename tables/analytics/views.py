"""The web view of analytics: sums over all partitions, whoever owns them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from datetime import date
from heapq import nsmallest
from itertools import chain, islice
from typing import Annotated, Any, Final, Literal, TypedDict, TypeVar

import msgspec
from aiohttp import web

from domain.analytics import AnalyticsState, Figures, ProductFigures
from engine import Service
from engine.web import (
    FRESHNESS,
    LIMIT,
    LIMIT_MAX,
    ROWS_PER_SLICE,
    Hop,
    Operation,
    Parameter,
    Path,
    catch_up,
    gather,
    invalid,
    json_response,
    limit,
)
from streams.events.money import AmountText, plain_text
from streams.topics import ORDER_EVENTS
from tables.analytics import (
    ANALYTICS_COUNTRIES,
    ANALYTICS_DAYS,
    ANALYTICS_PRODUCTS,
    ANALYTICS_STATE,
    ANALYTICS_TOTALS,
    NO_CURRENCY,
    STATE_KEY,
)
from tables.orders.queries import ORDER_PATH

ANALYTICS_PATH: Final[Path] = (*ORDER_PATH, Hop("project-analytics", ORDER_EVENTS))
DAYS_MAX = 10_000

T = TypeVar("T")

StepName = Literal["placed", "confirmed", "shipped", "cancelled"]

service = Service("analytics-views")


class Counts(TypedDict):
    """Orders by what became of them."""

    placed_count: int
    confirmed_count: int
    cancelled_count: int
    refunded_count: int
    shipped_count: int


class Revenue(TypedDict):
    """Amounts; `revenue` is what was confirmed less what was refunded."""

    placed_revenue: AmountText
    confirmed_revenue: AmountText
    cancelled_revenue: AmountText
    refunded_revenue: AmountText
    revenue: AmountText


class CurrencyRevenue(Revenue):
    """Amounts in one currency."""

    currency: str


class FunnelStep(TypedDict):
    """How many orders came as far as this step; the share is that of all placed orders."""

    step: StepName
    count: int
    share: float


class CancelReason(TypedDict):
    """How many orders were cancelled for a reason; the share is that of all cancelled orders."""

    reason: str | None
    count: int
    share: float


class Summary(Counts):
    """All orders in figures."""

    rejected_count: int
    late_count: int
    revenue: list[CurrencyRevenue]
    funnel: list[FunnelStep]
    cancel_reasons: list[CancelReason]


class Day(Counts, Revenue):
    """What happened on a day, in one currency; refused orders have none."""

    day: Annotated[str, msgspec.Meta(extra_json_schema={"format": "date"})]
    currency: str | None
    rejected_count: int
    late_count: int


class Product(TypedDict):
    """A product in figures, in one currency."""

    product_id: str
    currency: str
    order_count: int
    quantity: int
    placed_revenue: AmountText
    confirmed_quantity: int
    revenue: AmountText


class Country(Counts, Revenue):
    """A country's orders in figures, in one currency."""

    country: str
    currency: str


class DayList(TypedDict):
    """Days in figures, oldest first."""

    items: list[Day]


class ProductList(TypedDict):
    """Products in figures."""

    items: list[Product]


class CountryList(TypedDict):
    """Countries in figures."""

    items: list[Country]


def _day_parameter(name: str, help: str) -> Parameter:
    return Parameter(name, help, {"type": "string", "format": "date"})


FROM = _day_parameter("from", "the first day, such as 2026-11-23")
TO = _day_parameter("to", "the last day, such as 2026-11-23")
CURRENCY = Parameter("currency", "only this currency (ISO 4217)", {"type": "string", "pattern": "^[A-Z]{3}$"})
COUNTRIES_LIMIT = limit(LIMIT_MAX)


@service.route("GET", "/analytics/summary", Operation({200: Summary}, FRESHNESS))
async def get_summary(request: web.Request) -> web.StreamResponse:
    """Counts of orders, their `revenue` per currency, the `funnel`, and `cancel_reasons`, the commonest first.

    The funnel is `[{step, count, share}]` for placed, confirmed, shipped and cancelled; a share is that of all placed
    orders, one of a reason that of all cancellations. Reason null: none was given; numbers in reasons are masked.
    """
    await catch_up(request, ANALYTICS_PATH, None)
    totals, states = await asyncio.gather(gather(request, ANALYTICS_TOTALS), gather(request, ANALYTICS_STATE))
    return json_response(summary_view(totals, states.get(STATE_KEY, AnalyticsState())))


@service.route("GET", "/analytics/daily", Operation({200: DayList}, (FROM, TO, *FRESHNESS)))
async def get_daily(request: web.Request) -> web.StreamResponse:
    """`{items}`, one per day and currency, oldest first: what happened on that day by business time, UTC.

    `?from=` and `?to=` are days such as 2026-11-23, both included. Refused orders have no currency: null. `late_count`
    is how many events of the day came after one of a later day.
    """
    first, last = _day(request, FROM.name), _day(request, TO.name)
    if first is not None and last is not None and last < first:
        raise invalid(TO.name, "a day not before from")
    await catch_up(request, ANALYTICS_PATH, None)
    # Keys begin with the day, so the day itself lies before all its keys.
    before = None if last is None else last.encode() + b"\xff"
    days = await gather(request, ANALYTICS_DAYS, after=(first or "").encode(), before=before)
    if len(days) > DAYS_MAX:
        raise invalid(FROM.name, f"{len(days)} days and currencies, at most {DAYS_MAX} are shown: ask for fewer")
    return json_response(DayList(items=[day_view(*key, days[key]) for key in sorted(days)]))


@service.route("GET", "/analytics/products", Operation({200: ProductList}, (LIMIT, CURRENCY, *FRESHNESS)))
async def get_products(request: web.Request) -> web.StreamResponse:
    """`{items}`, one per product and currency, most revenue first, then most placed; `?limit=` is 20, at most 1000.

    `?currency=` leaves out all others: amounts of different currencies are compared as numbers.
    """
    shown_max, currency = LIMIT.read(request), _currency(request)
    await catch_up(request, ANALYTICS_PATH, None)
    products = await gather(request, ANALYTICS_PRODUCTS)
    shown = (item for item in products.items() if currency in (None, item[0][1]))
    items = [product_view(*key, figures) for key, figures in await top(shown, shown_max, _rank)]
    return json_response(ProductList(items=items))


@service.route("GET", "/analytics/countries", Operation({200: CountryList}, (COUNTRIES_LIMIT, CURRENCY, *FRESHNESS)))
async def get_countries(request: web.Request) -> web.StreamResponse:
    """`{items}`, one per country and currency, most revenue first, then most placed; `?limit=` is 1000, the most.

    `?currency=` leaves out all others. Orders without a country are those of `unknown`.
    """
    shown_max, currency = COUNTRIES_LIMIT.read(request), _currency(request)
    await catch_up(request, ANALYTICS_PATH, None)
    countries = await gather(request, ANALYTICS_COUNTRIES)
    shown = (item for item in countries.items() if currency in (None, item[0][1]))
    items = [country_view(*key, figures) for key, figures in await top(shown, shown_max, _rank)]
    return json_response(CountryList(items=items))


async def top(items: Iterable[T], limit: int, rank: Callable[[T], Any]) -> list[T]:
    """The `limit` items of the lowest rank, lowest first; gives the loop back in between."""
    rest, found = iter(items), list[T]()
    while chunk := list(islice(rest, ROWS_PER_SLICE)):
        found = nsmallest(limit, chain(found, chunk), key=rank)
        await asyncio.sleep(0)
    return found


def _rank(item: tuple[tuple[str, str], Figures | ProductFigures]) -> Any:
    key, figures = item
    return figures.revenue.copy_negate(), figures.placed_revenue.copy_negate(), key


# ---- shapes


def summary_view(totals: dict[str, Figures], state: AnalyticsState) -> Summary:
    """The answer of `/analytics/summary`."""
    total = Figures()
    for figures in totals.values():
        total = total.plus(figures)
    steps: tuple[tuple[StepName, int], ...] = (
        ("placed", total.placed_count),
        ("confirmed", total.confirmed_count),
        ("shipped", total.shipped_count),
        ("cancelled", total.cancelled_count),
    )
    reasons = sorted(state.cancel_reasons.items(), key=lambda item: (-item[1], item[0]))
    return {
        **_counts(total),
        "rejected_count": total.rejected_count,
        "late_count": total.late_count,
        "revenue": [
            {"currency": currency, **_revenue(totals[currency])}
            for currency in sorted(totals)
            if currency != NO_CURRENCY
        ],
        "funnel": [{"step": step, "count": n, "share": _share(n, total.placed_count)} for step, n in steps],
        "cancel_reasons": [
            {"reason": reason or None, "count": n, "share": _share(n, total.cancelled_count)} for reason, n in reasons
        ],
    }


def day_view(day: str, currency: str, figures: Figures) -> Day:
    """One item of `/analytics/daily`."""
    return {
        "day": day,
        "currency": None if currency == NO_CURRENCY else currency,
        **_counts(figures),
        "rejected_count": figures.rejected_count,
        "late_count": figures.late_count,
        **_revenue(figures),
    }


def product_view(product_id: str, currency: str, figures: ProductFigures) -> Product:
    """One item of `/analytics/products`."""
    return {
        "product_id": product_id,
        "currency": currency,
        "order_count": figures.order_count,
        "quantity": figures.quantity,
        "placed_revenue": plain_text(figures.placed_revenue),
        "confirmed_quantity": figures.confirmed_quantity,
        "revenue": plain_text(figures.revenue),
    }


def country_view(country: str, currency: str, figures: Figures) -> Country:
    """One item of `/analytics/countries`."""
    return {"country": country, "currency": currency, **_counts(figures), **_revenue(figures)}


def _counts(figures: Figures) -> Counts:
    return {
        "placed_count": figures.placed_count,
        "confirmed_count": figures.confirmed_count,
        "cancelled_count": figures.cancelled_count,
        "refunded_count": figures.refunded_count,
        "shipped_count": figures.shipped_count,
    }


def _revenue(figures: Figures) -> Revenue:
    return {
        "placed_revenue": plain_text(figures.placed_revenue),
        "confirmed_revenue": plain_text(figures.confirmed_revenue),
        "cancelled_revenue": plain_text(figures.cancelled_revenue),
        "refunded_revenue": plain_text(figures.refunded_revenue),
        "revenue": plain_text(figures.revenue),
    }


def _share(part: int, whole: int) -> float:
    return round(part / whole, 4) if whole else 0.0


# ---- parameters


def _day(request: web.Request, name: str) -> str | None:
    text = request.query.get(name)
    if text is None:
        return None
    try:
        if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
            return date.fromisoformat(text).isoformat()
    except ValueError:
        pass
    raise invalid(name, "a day such as 2026-11-23")


def _currency(request: web.Request) -> str | None:
    text = request.query.get(CURRENCY.name)
    if text is not None and not re.fullmatch(r"[A-Z]{3}", text):
        raise invalid(CURRENCY.name, "three capital letters (ISO 4217)")
    return text
