"""`orders place`: one order by hand."""

from __future__ import annotations

import re
import uuid
from decimal import Decimal
from typing import Any

import click

from engine.cli import client_for, echo, echo_json, example, path_of, run_until_interrupted, settings_from

CURRENCY = "GBP"
_ITEM = re.compile(
    r"(?P<product>.{1,128}):(?P<quantity>[0-9]{1,10}):(?P<amount>[0-9]+(?:\.[0-9]+)?)(?::(?P<currency>[A-Z]{3}))?"
)


class ItemType(click.ParamType):
    """`SKU:QTY:PRICE[:CURRENCY]` as an item of the body of `POST /orders`; the product id may hold colons."""

    name = "SKU:QTY:PRICE[:CURRENCY]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        """Split one item; a text that is none is a usage error."""
        found = _ITEM.fullmatch(str(value))
        if found is None:
            self.fail(f"{value!r} is not SKU:QTY:PRICE[:CURRENCY], like SKU-1:2:19.99:USD", param, ctx)
        if int(found["quantity"]) < 1 or Decimal(found["amount"]) <= 0:
            self.fail(f"{value!r}: quantity and price must be greater than 0", param, ctx)
        price = {"amount": found["amount"], "currency": found["currency"] or CURRENCY}
        return {"product_id": found["product"], "quantity": int(found["quantity"]), "price": price}


@click.command(
    epilog=example(
        "orders place --customer customer-456 --item SKU-1:2:19.99:USD --item SKU-2:1:5.00:USD",
        "orders place --customer 17850 --item 85123A:6:2.55 --order-id order-123 --wait 5s",
    )
)
@click.option("--customer", required=True, metavar="ID", help="who orders")
@click.option(
    "--item",
    "items",
    required=True,
    multiple=True,
    type=ItemType(),
    help=f"one line, {CURRENCY} unless it says otherwise",
)
@click.option("--order-id", metavar="ID", help="the order's id; a new one is made without it")
@click.option("--country", help="where it goes to")
@click.option("--email", help="where its mail goes to")
@click.option("--wait", default="2s", show_default=True, help="how long to wait until the order is decided: 2s, 500ms")
@click.option("--url", help="the worker's address; by default what the settings say")
def place(url: str | None, wait: str, **options: Any) -> None:
    """Place an order and print it as JSON.

    When the decision takes longer than --wait, the order's id and token are printed instead.
    """
    run_until_interrupted(_place(url, wait, _body(**options)))


def _body(
    customer: str, items: tuple[dict[str, Any], ...], order_id: str | None, country: str | None, email: str | None
) -> dict[str, Any]:
    body = {"order_id": order_id, "customer_id": customer, "items": items, "country": country, "email": email}
    return {name: value for name, value in body.items() if value is not None}


async def _place(url: str | None, wait: str, body: dict[str, Any]) -> None:
    # The key lets a request whose answer was lost be sent again without a second order.
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    async with client_for(settings_from(), url, headers) as client:
        status, found = await client.post("/orders", body, wait=wait)
    echo_json(found)
    if status == 202:
        echo(
            f"accepted, but not decided within {wait}: GET {client.url}{path_of('orders', found['order_id'])}", err=True
        )
