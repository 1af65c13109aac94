"""The verifier of sagas finds what it is there to find: each kind of damage to a sound world is noticed."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from engine.faust.app import EngineApp
from engine.log.embedded.broker import EmbeddedBroker
from streams.topics import INVENTORY_COMMANDS, ORDER_COMMANDS, PAYMENT_COMMANDS
from tables.orders import ORDERS
from tables.sagas import SAGAS
from tests.apps import caught_up, make_settings, publish, read_topic, row, running, wait_until
from tests.chaos.ledger import Ledger
from tests.chaos.orders import CANCEL, EVENT_TYPES, SHIP, Order, new_step
from tests.chaos.saga_verifier import count_outcomes, find_problems, is_settled
from tests.chaos.sagas import STYLES, look_at
from tests.chaos.shop import ADD, PLENTY, SCARCE, StockStep, random_purchase
from tests.chaos.verify_orders import count_broken
from tests.chaos.world import Record, World, read_log

BEGUN = 60
Body = dict[str, Any]


@dataclass
class Evidence:
    """All that the verifier is shown."""

    orders: list[Order]
    stock: list[StockStep]
    records: list[Record]
    ends: Mapping[tuple[str, int], int]
    views: dict[str, tuple[int, Any]]
    books: dict[str, tuple[int, int, Decimal]] = field(default_factory=dict)
    keys: dict[str, set[str]] = field(default_factory=dict)

    def ledger(self) -> Ledger:
        world = World(self.orders)
        world.add(self.records, self.ends)
        return Ledger(world)

    def noticed_by(self) -> set[str]:
        gateway = self.books, self.keys
        return set(find_problems(self.ledger(), self.stock, self.views, gateway))

    def find(self, topic: str, event_type: str, wanted: Callable[[Body], object] = lambda body: True) -> int:
        """The place of the last such record."""
        return next(
            place
            for place in reversed(range(len(self.records)))
            if self.records[place].topic == topic
            and (body := self.records[place].body)["eventType"] == event_type
            and wanted(body)
        )

    def change(self, place: int, **values: Any) -> None:
        """Write other values into an envelope, or with a dict into a part of it."""
        body = self.records[place].body
        for name, value in values.items():
            body[name] = body[name] | value if isinstance(value, dict) else value
        self.records[place] = self.records[place]._replace(value=json.dumps(body, default=str).encode())

    def append(self, place: int, event_type: str | None = None, **values: Any) -> None:
        """Let another event of the same aggregate follow, which is as the one at `place` but for these values."""
        values["eventType"] = event_type or self.records[place].body["eventType"]
        origin = self.records[place]
        versions = [r.body["aggregateVersion"] for r in self.records if (r.topic, r.key) == (origin.topic, origin.key)]
        self.records.append(origin._replace(offset=10**6))
        self.change(len(self.records) - 1, aggregateVersion=max(versions) + 1, eventId="another", **values)

    def change_row(self, table: str, number: int = -1, **values: Any) -> None:
        """Write other values into the last word on a key of a table."""
        places = [n for n, r in enumerate(self.records) if r.topic == f"orders-{table}-changelog" and r.value]
        body = json.loads(self.records[places[number]].value or b"") | values
        self.records[places[number]] = self.records[places[number]]._replace(value=json.dumps(body).encode())


@pytest.fixture(scope="module", params=STYLES)
def recorded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Evidence:
    """What a run without faults leaves behind, in which everything happened that can happen."""
    return asyncio.run(record(request.param, tmp_path_factory.mktemp("sound")))


@pytest.fixture
def sound(recorded: Evidence) -> Evidence:
    return replace(
        recorded,
        records=list(recorded.records),
        views=dict(recorded.views),
        books=dict(recorded.books),
        keys=dict(recorded.keys),
    )


async def record(style: str, folder: Path) -> Evidence:
    rnd = random.Random(1)
    settings = make_settings("memory://", folder, app_id="orders", saga=style, payment_decline=0.2)
    orders = [random_purchase(rnd, "test", number, 0.0, customers=5) for number in range(BEGUN)]
    ids = [order.order_id or "" for order in orders]
    stock = [StockStep(ADD, product_id, 1000, f"stock-{product_id}", datetime.now(UTC), True) for product_id in PLENTY]
    stock += [StockStep(ADD, product_id, 5, f"stock-{product_id}", datetime.now(UTC), True) for product_id in SCARCE]
    async with running(settings) as app:
        for step in stock:
            await publish(app, INVENTORY_COMMANDS, step.product_id, step.command(), step.command())
        for order in orders:
            await ask(app, order)
        await wait_until(lambda: all(order_status(app, order_id) != "pending" for order_id in ids), "all are decided")
        confirmed = [order for order in orders if order_status(app, order.order_id or "") == "confirmed"]
        for order, kind in zip(confirmed, [CANCEL, SHIP] * (len(confirmed) // 3), strict=False):
            order.steps.append(new_step(rnd, kind, EVENT_TYPES[kind]))
            await ask(app, order)
        for topic in (INVENTORY_COMMANDS, PAYMENT_COMMANDS):
            for repeated in (await read_topic(app, topic))[::5]:
                await publish(app, topic, (repeated.key or b"").decode(), repeated.value or b"")
        await wait_until(lambda: all(has_ended(app, order_id) for order_id in ids), "all sagas have ended")
        for _ in range(5):  # what follows from one topic in another
            await caught_up(app)
        paths = [f"/{kind}/{order_id}" for order_id in ids for kind in ("orders", "payments", "sagas")]
        views = await look_at(
            [*paths, *(f"/inventory/{step.product_id}" for step in stock)], lambda: [settings.public_url]
        )
        assert isinstance(app.engine.broker, EmbeddedBroker)
        records, ends = read_log(app.engine.broker.log)
    evidence = Evidence(orders, stock, list(records), ends, views)
    write_books(evidence)
    return evidence


async def ask(app: EngineApp, order: Order) -> None:
    """Send the last command of an order twice."""
    step, order_id = order.steps[-1], order.order_id or ""
    await publish(app, ORDER_COMMANDS, order_id, order.command(step), order.command(step))
    step.acknowledged = True


def order_status(app: EngineApp, order_id: str) -> str:
    found = row(app, ORDERS, order_id)
    return "pending" if found is None else found.status


def has_ended(app: EngineApp, order_id: str) -> bool:
    saga = row(app, SAGAS, order_id)
    return saga is not None and saga.ended_ms is not None and saga.state in ("completed", "compensated")


def write_books(evidence: Evidence) -> None:
    """What an honest gateway would have written down."""
    for order_id, events in evidence.ledger().events["payment-events"].items():
        kinds = [event.type for event in events]
        if "payment.received" in kinds:
            refunds = kinds.count("payment.refunded")
            total = Decimal(events[0].payload["amount"]["amount"])
            evidence.books[order_id] = (1, refunds, Decimal(0) if refunds else total)
            evidence.keys[order_id] = {order_id}


def test_a_sound_world_in_which_everything_happens_has_no_problems(sound: Evidence) -> None:
    ledger = sound.ledger()
    assert sound.noticed_by() == set()
    assert count_broken(ledger) == (0, 0)
    happened = count_outcomes(ledger)
    wanted = ("confirmed", "shipped", "cancelled", "out_of_stock", "declined", "refunded")
    assert all(happened[name] for name in wanted), happened


def test_a_world_in_which_a_saga_goes_on_is_not_settled(sound: Evidence) -> None:
    assert is_settled(sound.ledger().world)
    sound.change_row("sagas", state="compensating")
    assert not is_settled(sound.ledger().world)


# ---- stock


def test_a_lost_reservation_is_noticed(sound: Evidence) -> None:
    ledger = sound.ledger()

    def is_confirmed(body: Body) -> bool:
        return ledger.purchases[body["payload"]["orderId"]].status == "confirmed"

    del sound.records[sound.find("inventory-events", "inventory.reserved", is_confirmed)]
    assert {"check_outcomes", "check_replies", "check_tables", "check_views"} <= sound.noticed_by()


def test_a_repeated_event_of_stock_is_noticed(sound: Evidence) -> None:
    place = sound.find("inventory-events", "inventory.reserved")
    sound.records.insert(place, sound.records[place])
    assert {"check_versions", "check_stock", "check_commands", "check_replies"} <= sound.noticed_by()


def test_selling_more_than_there_is_is_noticed(sound: Evidence) -> None:
    sound.change(sound.find("inventory-events", "inventory.reserved"), payload={"quantity": 1001})
    assert "check_stock" in sound.noticed_by()


def test_selling_the_same_line_twice_is_noticed(sound: Evidence) -> None:
    sound.append(sound.find("inventory-events", "inventory.reserved"))
    assert "check_stock" in sound.noticed_by()


def test_giving_back_more_than_was_reserved_is_noticed(sound: Evidence) -> None:
    sound.change(sound.find("inventory-events", "inventory.released"), payload={"quantity": 7})
    assert "check_stock" in sound.noticed_by()


def test_shipping_what_is_not_reserved_is_noticed(sound: Evidence) -> None:
    sound.append(sound.find("inventory-events", "inventory.released"), "inventory.shipped")
    assert {"check_stock", "check_outcomes"} <= sound.noticed_by()


def test_a_stocktake_that_does_not_add_up_is_noticed(sound: Evidence) -> None:
    sound.change(sound.find("inventory-events", "inventory.stocked"), payload={"quantity": 4})
    assert {"check_stock", "check_shelves"} <= sound.noticed_by()


def test_refusing_stock_that_is_there_is_noticed(sound: Evidence) -> None:
    place = sound.find("inventory-events", "inventory.reservation_failed")
    sound.change(place, payload={"quantity": 0})
    assert "check_stock" in sound.noticed_by()


def test_stock_that_a_cancelled_order_keeps_is_noticed(sound: Evidence) -> None:
    del sound.records[sound.find("inventory-events", "inventory.released", lambda body: body["payload"]["quantity"])]
    assert {"check_outcomes", "check_replies"} <= sound.noticed_by()


def test_stock_that_a_confirmed_order_lost_is_noticed(sound: Evidence) -> None:
    ledger = sound.ledger()

    def of_confirmed(body: Body) -> bool:
        return ledger.purchases[body["payload"]["orderId"]].status == "confirmed"

    sound.append(sound.find("inventory-events", "inventory.reserved", of_confirmed), "inventory.released")
    assert "check_outcomes" in sound.noticed_by()


def test_stock_of_an_order_that_nobody_placed_is_noticed(sound: Evidence) -> None:
    sound.append(sound.find("inventory-events", "inventory.reserved"), payload={"orderId": "order-nobody"})
    assert "check_outcomes" in sound.noticed_by()


def test_a_stock_command_that_was_accepted_and_lost_is_noticed(sound: Evidence) -> None:
    sound.stock = [*sound.stock, replace(sound.stock[0], command_id="lost")]
    assert sound.noticed_by() == {"check_shelves"}


# ---- money


def test_a_double_charge_is_noticed(sound: Evidence) -> None:
    sound.append(sound.find("payment-events", "payment.received"))
    assert {"check_money", "check_books"} <= sound.noticed_by()


def test_a_double_refund_is_noticed(sound: Evidence) -> None:
    sound.append(sound.find("payment-events", "payment.refunded"))
    assert {"check_money", "check_books"} <= sound.noticed_by()


def test_a_refund_without_a_charge_is_noticed(sound: Evidence) -> None:
    sound.append(sound.find("payment-events", "payment.failed"), "payment.refunded")
    assert "check_money" in sound.noticed_by()


def test_a_charge_after_a_failure_is_noticed(sound: Evidence) -> None:
    sound.append(sound.find("payment-events", "payment.failed"), "payment.received")
    assert {"check_money", "check_outcomes"} <= sound.noticed_by()


def test_a_charge_that_is_one_cent_too_high_is_noticed(sound: Evidence) -> None:
    place = sound.find("payment-events", "payment.received")
    amount = Decimal(sound.records[place].body["payload"]["amount"]["amount"]) + Decimal("0.01")
    sound.change(place, payload={"amount": {"amount": str(amount), "currency": "GBP"}})
    assert {"check_money", "check_books", "check_replies"} <= sound.noticed_by()


def test_a_charge_of_another_customer_is_noticed(sound: Evidence) -> None:
    sound.change(sound.find("payment-events", "payment.received"), payload={"customerId": "customer-other"})
    assert "check_money" in sound.noticed_by()


def test_a_confirmed_order_that_was_not_paid_is_noticed(sound: Evidence) -> None:
    ledger = sound.ledger()
    del sound.records[
        sound.find(
            "payment-events",
            "payment.received",
            lambda body: ledger.purchases[body["aggregateId"]].status == "confirmed",
        )
    ]
    assert {"check_outcomes", "check_money", "check_books"} <= sound.noticed_by()


def test_a_cancelled_order_whose_money_was_kept_is_noticed(sound: Evidence) -> None:
    del sound.records[sound.find("payment-events", "payment.refunded")]
    assert {"check_outcomes", "check_money", "check_books"} <= sound.noticed_by()


def test_asking_for_another_amount_is_noticed(sound: Evidence) -> None:
    price = {"amount": {"amount": "0.01", "currency": "GBP"}}
    sound.change(sound.find("payment-commands", "payment.charge"), payload=price)
    assert sound.noticed_by() == {"check_charges"}


def test_asking_for_money_before_there_is_stock_is_noticed(sound: Evidence) -> None:
    asked = sound.records[sound.find("payment-commands", "payment.charge")].key.decode()
    place = sound.find("inventory-events", "inventory.reserved", lambda body: body["payload"]["orderId"] == asked)
    del sound.records[place]
    assert "check_charges" in sound.noticed_by()


@pytest.mark.parametrize("entry", [(2, 0, Decimal(20)), (1, 1, Decimal(0)), (0, 0, Decimal(0))])
def test_books_of_the_gateway_that_say_something_else_are_noticed(
    sound: Evidence, entry: tuple[int, int, Decimal]
) -> None:
    order_id = next(order_id for order_id, (_, refunds, _) in sound.books.items() if not refunds)
    sound.books[order_id] = entry
    assert sound.noticed_by() == {"check_books"}


def test_asking_the_gateway_for_the_same_money_under_two_keys_is_noticed(sound: Evidence) -> None:
    order_id = next(iter(sound.keys))
    sound.keys[order_id] = {order_id, "another"}
    assert sound.noticed_by() == {"check_books"}


# ---- orders and their sagas


def test_an_order_that_never_ends_is_noticed(sound: Evidence) -> None:
    del sound.records[sound.find("order-events", "order.confirmed")]
    assert {"check_outcomes", "check_money"} <= sound.noticed_by()


def test_an_order_confirmed_after_its_end_is_noticed(sound: Evidence) -> None:
    sound.append(sound.find("order-events", "order.cancelled"), "order.confirmed")
    assert {"check_histories", "check_purchases", "check_outcomes"} <= sound.noticed_by()


def test_a_needless_refusal_is_noticed(sound: Evidence) -> None:
    ledger = sound.ledger()

    def is_confirmed(body: Body) -> bool:
        purchase = ledger.purchases[body["aggregateId"]]
        return purchase.status == "confirmed" and not purchase.shipped

    refusal = {"command": "order.cancel", "reason": "already_cancelled"}
    sound.append(sound.find("order-events", "order.confirmed", is_confirmed), "order.rejected", payload=refusal)
    assert "check_histories" in sound.noticed_by()


def test_an_order_cancelled_for_no_reason_is_noticed(sound: Evidence) -> None:
    ledger = sound.ledger()
    asked = {command.id for command in ledger.commands["order-commands"]}
    place = sound.find("order-events", "order.cancelled", lambda body: body["metadata"]["causationId"] not in asked)
    sound.change(place, payload={"reason": "bad_mood"})
    assert "check_reasons" in sound.noticed_by()


def test_an_order_that_was_promised_and_never_placed_is_noticed(sound: Evidence) -> None:
    sound.orders = [*sound.orders, replace(sound.orders[0], ref="missing", order_id="order-missing")]
    assert sound.noticed_by() == {"check_purchases"}
    assert count_broken(sound.ledger()) == (len(sound.orders[0].steps), 0)


def test_an_order_that_nobody_asked_for_is_noticed(sound: Evidence) -> None:
    sound.orders = sound.orders[1:]
    assert sound.noticed_by() == {"check_purchases"}


def test_another_order_than_was_asked_for_is_noticed(sound: Evidence) -> None:
    sound.orders = [replace(sound.orders[0], customer_id="customer-other"), *sound.orders[1:]]
    assert sound.noticed_by() == {"check_purchases"}


@pytest.mark.parametrize("event_type", ["order.placed", "order.cancelled", "order.shipped"])
def test_a_customers_command_that_is_lost_is_noticed(sound: Evidence, event_type: str) -> None:
    asked = {command.id for command in sound.ledger().commands["order-commands"]}
    place = sound.find("order-events", event_type, lambda body: body["metadata"]["causationId"] in asked)
    del sound.records[place]
    assert {"check_purchases", "check_commands", "check_orders_table"} <= sound.noticed_by()
    assert count_broken(sound.ledger()) == (1, 0)


def test_a_customers_command_that_took_effect_twice_is_noticed(sound: Evidence) -> None:
    sound.append(sound.find("order-events", "order.shipped"))
    assert {"check_purchases", "check_commands", "check_histories"} <= sound.noticed_by()
    assert count_broken(sound.ledger()) == (0, 1)


# ---- what follows from what


@pytest.mark.parametrize("topic", ["inventory-commands", "payment-commands"])
def test_a_sagas_command_that_is_not_decided_is_noticed(sound: Evidence, topic: str) -> None:
    event_type = "inventory.reserve" if topic == "inventory-commands" else "payment.charge"
    place = sound.find(topic, event_type)
    sound.records.append(sound.records[place])
    sound.change(len(sound.records) - 1, eventId="undecided")
    assert sound.noticed_by() == {"check_commands"}


@pytest.mark.parametrize("event_type", ["inventory.reserved", "inventory.released", "payment.received"])
def test_a_reply_that_is_lost_or_repeated_or_wrong_is_noticed(sound: Evidence, event_type: str) -> None:
    place = sound.find("saga-replies", event_type, lambda body: "aggregateVersion" in body)
    original = list(sound.records)
    del sound.records[place]
    assert {"check_replies", "check_commands"} <= sound.noticed_by()
    sound.records = [*original, original[place]]
    assert {"check_replies", "check_commands"} <= sound.noticed_by()
    sound.records = list(original)
    sound.change(place, timestamp="2000-01-01T00:00:00.000000Z")
    assert "check_replies" in sound.noticed_by()


@pytest.mark.parametrize(
    ("topic", "event_type"),
    [
        ("order-events", "order.confirmed"),
        ("inventory-events", "inventory.reserved"),
        ("payment-events", "payment.received"),
        ("inventory-commands", "inventory.reserve"),
        ("payment-commands", "payment.charge"),
        ("customer-order-events", "order.summary_changed"),
    ],
)
def test_a_cause_that_does_not_exist_is_noticed(sound: Evidence, topic: str, event_type: str) -> None:
    sound.change(sound.find(topic, event_type), metadata={"causationId": "nothing"})
    assert "check_causes" in sound.noticed_by()


@pytest.mark.parametrize("topic", ["order-events", "inventory-events", "payment-events"])
def test_a_hole_in_the_versions_is_noticed(sound: Evidence, topic: str) -> None:
    place = next(n for n in reversed(range(len(sound.records))) if sound.records[n].topic == topic)
    sound.change(place, aggregateVersion=sound.records[place].body["aggregateVersion"] + 1)
    assert "check_versions" in sound.noticed_by()


@pytest.mark.parametrize("event_type", ["inventory.reserved", "payment.refunded", "payment.failed"])
def test_an_integration_event_that_is_lost_is_noticed(sound: Evidence, event_type: str) -> None:
    place = next(
        n
        for n, found in enumerate(sound.records)
        if found.topic == "integration-events" and found.body["event_type"] == event_type
    )
    del sound.records[place]
    assert sound.noticed_by() == {"check_integration_events"}


def test_a_dead_letter_is_noticed(sound: Evidence) -> None:
    sound.records.append(Record("dead-letters", 0, 0, 0, b"k", b"{}"))
    assert sound.noticed_by() == {"check_dead_letters"}


# ---- tables and views


@pytest.mark.parametrize(
    ("table", "values"),
    [
        ("stock", {"reserved": 999}),
        ("reservations", {"state": "unheard of"}),
        ("payments", {"status": "unheard of"}),
        ("sagas", {"state": "running"}),
        ("saga-counts", {"count": 999}),
    ],
)
def test_a_wrong_row_is_noticed(sound: Evidence, table: str, values: dict[str, Any]) -> None:
    sound.change_row(table, **values)
    assert sound.noticed_by() == {"check_tables"}


def test_a_timer_that_is_left_over_is_noticed(sound: Evidence) -> None:
    sound.records.append(Record("orders-timers-changelog", 0, 10**6, 0, b"due", b"{}"))
    assert sound.noticed_by() == {"check_timers"}


@pytest.mark.parametrize("agent", ["decide-stock", "decide-payments", "take-replies"])
def test_an_agent_that_is_behind_is_noticed(sound: Evidence, agent: str) -> None:
    for place, found in enumerate(sound.records):
        if found.topic == "orders-positions-changelog" and agent.encode() in (found.value or b""):
            position = json.loads(found.value or b"") | {"offset": 0}
            sound.records[place] = found._replace(value=json.dumps(position).encode())
    assert sound.noticed_by() == {"check_positions"}


@pytest.mark.parametrize(
    ("kind", "values"),
    [
        ("orders", {"status": "pending"}),
        ("payments", {"status": "pending"}),
        ("sagas", {"state": "running"}),
        ("inventory", {"available": -1}),
    ],
)
def test_a_view_that_shows_something_else_is_noticed(sound: Evidence, kind: str, values: dict[str, Any]) -> None:
    path = next(path for path, (status, _) in sound.views.items() if path.startswith(f"/{kind}/") and status == 200)
    sound.views[path] = (200, sound.views[path][1] | values)
    assert sound.noticed_by() == {"check_views"}
    sound.views[path] = (404, {})
    assert sound.noticed_by() == {"check_views"}
