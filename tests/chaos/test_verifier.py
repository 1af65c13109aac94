"""The verifier finds what it is there to find: each kind of damage to a sound world is noticed by the check for it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from engine.log.embedded.broker import EmbeddedBroker
from streams.topics import ORDER_COMMANDS
from tests.apps import caught_up, make_settings, publish, running
from tests.chaos.orders import Order, random_order
from tests.chaos.verifier import count_broken, find_problems
from tests.chaos.world import Record, World, read_log

ORDERS = 40
Records = list[Record]
Ends = Mapping[tuple[str, int], int]


@pytest.fixture
async def sound(tmp_path: Path) -> tuple[list[Order], Records, Ends]:
    """What a run without faults leaves behind, all of it over the log."""
    rnd = random.Random(1)
    orders = [random_order(rnd, "test", number, 0.0, customers=5) for number in range(ORDERS)]
    async with running(make_settings("memory://", tmp_path, app_id="orders")) as app:
        for order in orders:
            for step in order.steps:
                await publish(app, ORDER_COMMANDS, order.order_id or "", order.command(step), order.command(step))
                step.acknowledged = True
        await caught_up(app, "decide-orders")
        await caught_up(app)
        assert isinstance(app.engine.broker, EmbeddedBroker)
        records, ends = read_log(app.engine.broker.log)
    return orders, list(records), ends


def names_of_problems(orders: Sequence[Order], records: Records, ends: Ends) -> set[str]:
    world = World(orders)
    world.add(records, ends)
    return set(find_problems(world))


def test_a_sound_world_has_no_problems(sound: tuple[list[Order], Records, Ends]) -> None:
    assert names_of_problems(*sound) == set()


def find(records: Records, topic: str, number: int = 0) -> int:
    """The place of the first, second... record of a topic that carries a value; negative from the end."""
    return [place for place, record in enumerate(records) if record.topic == topic and record.value][number]


def lose(topic: str, number: int = 0) -> Callable[[Records], None]:
    return lambda records: records.__delitem__(find(records, topic, number))


def repeat(topic: str) -> Callable[[Records], None]:
    def damage(records: Records) -> None:
        place = find(records, topic)
        records.insert(place, records[place])

    return damage


def swap_versions(records: Records) -> None:
    """Reorder two events of an order that has two."""
    places: dict[bytes, int] = {}
    for place, record in enumerate(records):
        if record.topic == "order-events":
            if record.key in places:
                first = places[record.key]
                records[first], records[place] = records[place], records[first]
                return
            places[record.key] = place


def change(topic: str, **values: Any) -> Callable[[Records], None]:
    """Write other values into the last record of a topic, which is the last word on its key."""

    def damage(records: Records) -> None:
        place = find(records, topic, -1)
        row = json.loads(records[place].value or b"") | values
        records[place] = records[place]._replace(value=json.dumps(row).encode())

    return damage


def add(topic: str, key: bytes, value: bytes) -> Callable[[Records], None]:
    return lambda records: records.append(Record(topic, 0, 10**6, 0, key, value))


@pytest.mark.parametrize(
    ("damage", "noticed_by"),
    [
        pytest.param(lose("order-events"), "check_promises", id="a lost event breaks a promise"),
        pytest.param(lose("order-events"), "check_commands", id="a lost event is a lost command"),
        pytest.param(repeat("order-events"), "check_versions", id="a repeated event"),
        pytest.param(repeat("order-events"), "check_commands", id="a command that took effect twice"),
        pytest.param(swap_versions, "check_versions", id="reordered events"),
        pytest.param(lose("integration-events"), "check_integration_events", id="a lost integration event"),
        pytest.param(repeat("integration-events"), "check_integration_events", id="a repeated integration event"),
        pytest.param(lose("customer-order-events"), "check_summaries", id="a lost summary"),
        pytest.param(repeat("customer-order-events"), "check_summaries", id="a repeated summary"),
        pytest.param(lose("orders-orders-changelog", -1), "check_orders_table", id="an old or missing row"),
        pytest.param(
            change("orders-orders-changelog", total={"amount": "0.01", "currency": "GBP"}),
            "check_orders_table",
            id="a wrong total",
        ),
        pytest.param(change("orders-customer-orders-changelog", version=9), "check_customer_orders", id="a wrong line"),
        pytest.param(lose("orders-order-history-changelog", -1), "check_history", id="a gap in the audit trail"),
        pytest.param(lose("orders-handled-commands-changelog", -1), "check_commands", id="a forgotten mark"),
        pytest.param(change("orders-positions-changelog", offset=0), "check_positions", id="an agent that is behind"),
        pytest.param(
            change("orders-positions-changelog", offset=10**9), "check_positions", id="an agent beyond the end"
        ),
        pytest.param(add("dead-letters", b"k", b"{}"), "check_dead_letters", id="a dead letter"),
        pytest.param(add("order-requests", b"k", b"{}"), "check_requests", id="a request that was not let through"),
    ],
)
def test_damage_is_noticed(
    sound: tuple[list[Order], Records, Ends], damage: Callable[[Records], None], noticed_by: str
) -> None:
    orders, records, ends = sound
    damage(records)
    assert noticed_by in names_of_problems(orders, records, ends)


def test_an_order_that_was_promised_but_never_placed_is_noticed(sound: tuple[list[Order], Records, Ends]) -> None:
    orders, records, ends = sound
    missing = replace(orders[0], ref="missing", order_id="order-missing")
    assert names_of_problems([*orders, missing], records, ends) == {"check_promises"}


def test_an_order_that_nobody_asked_for_is_noticed(sound: tuple[list[Order], Records, Ends]) -> None:
    orders, records, ends = sound
    assert names_of_problems(orders[1:], records, ends) == {"check_promises"}


@pytest.mark.parametrize(
    ("damage", "lost_and_duplicated"),
    [(lambda records: None, (0, 0)), (lose("order-events"), (1, 0)), (repeat("order-events"), (0, 1))],
    ids=["sound", "lost", "repeated"],
)
def test_the_figures_count_what_is_lost_and_what_is_repeated(
    sound: tuple[list[Order], Records, Ends],
    damage: Callable[[Records], None],
    lost_and_duplicated: tuple[int, int],
) -> None:
    orders, records, ends = sound
    damage(records)
    world = World(orders)
    world.add(records, ends)
    assert count_broken(world) == lost_and_duplicated
