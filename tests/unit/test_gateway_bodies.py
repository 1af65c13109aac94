"""Bodies of HTTP commands: what is taken, what is refused and how the refusal names the field."""

import json
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

import pytest

from agents.http.bodies import CancelOrderBody, PlaceOrderBody
from engine.web.answers import Problem
from engine.web.bodies import parse
from streams.events.money import Money
from streams.events.orders import OrderItem, PlaceOrder
from streams.settings import Settings

SETTINGS = Settings(_env_file=None)


def item(**changes: Any) -> dict[str, Any]:
    return {"product_id": "SKU-1", "quantity": 2, "price": {"amount": "19.99", "currency": "USD"}, **changes}


def body(**changes: Any) -> dict[str, Any]:
    return {"customer_id": "customer-1", "items": [item()], **changes}


def place(value: Any, settings: Settings = SETTINGS) -> PlaceOrderBody:
    return parse(PlaceOrderBody, json.dumps(value).encode(), settings)


def refusals(raw: bytes, settings: Settings = SETTINGS) -> dict[str, str]:
    with pytest.raises(Problem) as caught:
        parse(PlaceOrderBody, raw, settings)
    assert caught.value.status == 422
    return {error["field"]: error["message"] for error in caught.value.body["errors"]}


def refused_fields(raw: bytes) -> list[str]:
    return list(refusals(raw))


def priced(amount: str, currency: str) -> bytes:
    return json.dumps(body(items=[item(price={"amount": amount, "currency": currency})])).encode()


def test_a_body_becomes_the_command_it_asks_for() -> None:
    taken = place(
        body(country="France", email="a@example.com", items=[item(price={"amount": "1.50", "currency": "EUR"})])
    )
    items = (OrderItem("SKU-1", 2, Money(Decimal("1.50"), "EUR")),)
    assert taken.command("o-1") == PlaceOrder("o-1", "customer-1", items, None, "France", "a@example.com")
    assert str(taken.items[0].price.amount) == "1.50"


def test_business_time_is_brought_to_utc() -> None:
    assert place(body(occurred_at="2010-12-01T08:26:00+01:00")).occurred_at == datetime(2010, 12, 1, 7, 26, tzinfo=UTC)


def test_unknown_fields_are_ignored_as_in_the_envelope() -> None:
    assert place(body(colour="red")) == place(body())


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"customer_id": ""}, "customer_id"),
        ({"customer_id": "x" * 129}, "customer_id"),
        ({"customer_id": 5}, "customer_id"),
        ({"customer_id": None}, "customer_id"),
        ({"order_id": ""}, "order_id"),
        ({"order_id": "x" * 129}, "order_id"),
        ({"command_id": ""}, "command_id"),
        ({"items": []}, "items"),
        ({"items": [item()] * 10_001}, "items"),
        ({"items": [item(), item(price={"amount": "1.00", "currency": "EUR"})]}, "items"),
        ({"items": [item(product_id="")]}, "items.0.product_id"),
        ({"items": [item(), item(quantity=0)]}, "items.1.quantity"),
        ({"items": [item(quantity=-1)]}, "items.0.quantity"),
        ({"items": [item(quantity=10**9 + 1)]}, "items.0.quantity"),
        ({"items": [item(quantity=1.5)]}, "items.0.quantity"),
        ({"items": [item(quantity="1")]}, "items.0.quantity"),
        ({"items": [item(quantity=True)]}, "items.0.quantity"),
        ({"items": [item(price={"amount": "1.00", "currency": "usd"})]}, "items.0.price.currency"),
        ({"items": [item(price={"amount": "1.00", "currency": "USDT"})]}, "items.0.price.currency"),
        ({"occurred_at": "2010-12-01T08:26:00"}, "occurred_at"),
        ({"occurred_at": "2010-12-01"}, "occurred_at"),
        ({"occurred_at": "1291190760"}, "occurred_at"),
        ({"occurred_at": 1291190760}, "occurred_at"),
        ({"occurred_at": "yesterday"}, "occurred_at"),
        ({"occurred_at": "0001-01-01T00:00:00+05:00"}, "occurred_at"),
        ({"country": 7}, "country"),
        ({"country": "x" * 129}, "country"),
        ({"email": "x" * 321}, "email"),
    ],
)
def test_a_refusal_names_the_field(changes: dict[str, Any], field: str) -> None:
    assert refused_fields(json.dumps(body(**changes)).encode()) == [field]


@pytest.mark.parametrize(
    "amount",
    [
        19.99, 20, None, "", "0", "0.00", "-1.00", "+1.00", "1e3", "NaN", "Infinity", "1,50", " 1.00", "1.00\n", ".5",
        "1.", "٣.00", "9" * 29, "1." + "0" * 28, "0.0000000001",
    ],
)  # fmt: skip
def test_an_amount_is_a_positive_plain_decimal_string(amount: Any) -> None:
    raw = json.dumps(body(items=[item(price={"amount": amount, "currency": "USD"})])).encode()
    assert refused_fields(raw) == ["items.0.price.amount"]


def test_every_field_that_cannot_be_used_is_named_once() -> None:
    raw = json.dumps({"items": [item(quantity=0, price={"amount": 1, "currency": "x"})], "country": 1}).encode()
    assert refused_fields(raw) == [
        "customer_id",
        "items.0.quantity",
        "items.0.price.amount",
        "items.0.price.currency",
        "country",
    ]


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b'"text"', b"null", b"\xff", b"[" * 10_000, b'{"customer_id": "\\ud800"}']
)
def test_what_is_no_json_object_is_refused_as_a_whole(raw: bytes) -> None:
    assert refused_fields(raw) == ["body"]


def test_the_fingerprint_is_that_of_the_meaning() -> None:
    value = body(country=None, occurred_at="2010-12-01T08:26:00Z")
    reordered = b"  " + json.dumps(dict(reversed(value.items())), indent=2).encode()
    assert parse(PlaceOrderBody, reordered, SETTINGS).fingerprint() == place(value).fingerprint()
    assert place(body(occurred_at="2010-12-01T09:26:00+01:00")).fingerprint() == place(value).fingerprint()


@pytest.mark.parametrize(
    "changes",
    [
        {"order_id": "o"},
        {"customer_id": "other"},
        {"items": [item(quantity=3)]},
        {"country": "France"},
        {"email": "a@b"},
    ],
)
def test_another_meaning_has_another_fingerprint(changes: dict[str, Any]) -> None:
    assert place(body(**changes)).fingerprint() != place(body()).fingerprint()


def test_an_empty_object_is_enough_to_cancel() -> None:
    assert parse(CancelOrderBody, b"{}", SETTINGS) == CancelOrderBody()


@pytest.mark.parametrize(
    ("amount", "currency", "message"),
    [
        ("100.50", "JPY", "a price in JPY has at most 0 decimals (ORDERS_PRICE_DECIMALS allows more)"),
        ("0.005", "USD", "a price in USD has at most 2 decimals (ORDERS_PRICE_DECIMALS allows more)"),
        ("1.2345", "KWD", "a price in KWD has at most 3 decimals (ORDERS_PRICE_DECIMALS allows more)"),
        ("1.00", "XXX", "'XXX' is not a currency of ISO 4217"),
        ("1.00", "ABC", "'ABC' is not a currency of ISO 4217"),
        ("1.00", "XAU", "'XAU' is not a currency of ISO 4217"),
    ],
)
def test_a_price_that_nobody_can_pay_is_refused_with_the_reason(amount: str, currency: str, message: str) -> None:
    assert refusals(priced(amount, currency)) == {"items.0.price": message}


@pytest.mark.parametrize(
    ("amount", "currency"), [("100.00", "JPY"), ("100", "JPY"), ("0.01", "USD"), ("19.9900", "USD"), ("1.234", "KWD")]
)
def test_a_price_in_the_units_of_its_currency_is_taken(amount: str, currency: str) -> None:
    assert str(parse(PlaceOrderBody, priced(amount, currency), SETTINGS).items[0].price.amount) == amount


def test_a_shop_that_prices_in_fractions_says_with_how_many_decimals() -> None:
    fractions = Settings(_env_file=None, price_decimals=3)
    assert str(parse(PlaceOrderBody, priced("0.001", "GBP"), fractions).items[0].price.amount) == "0.001"
    assert list(refusals(priced("0.0001", "GBP"), fractions)) == ["items.0.price"]


def test_fewer_decimals_than_those_of_the_currency_change_nothing() -> None:
    none = Settings(_env_file=None, price_decimals=0)
    assert str(parse(PlaceOrderBody, priced("0.01", "GBP"), none).items[0].price.amount) == "0.01"


@pytest.mark.parametrize(
    "time", ["9999-12-31T23:59:59Z", "2200-01-01T00:00:00Z", "1899-12-31T23:59:59Z", "0001-01-01T00:00:00+14:00"]
)
def test_a_business_time_outside_of_sane_years_is_refused(time: str) -> None:
    assert refusals(json.dumps(body(occurred_at=time)).encode()) == {"occurred_at": "a time in the years 1900 to 2199"}


@pytest.mark.parametrize("time", ["1900-01-01T00:00:00Z", "2199-12-31T23:59:59.999999Z"])
def test_the_first_and_the_last_moment_of_the_sane_years_are_taken(time: str) -> None:
    assert place(body(occurred_at=time)).occurred_at is not None
