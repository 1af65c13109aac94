"""A story is told from rows, and says what the records in the topics say: the same ids, types and causes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import msgspec
import pytest

from engine.declare.envelope import Envelope
from streams.events.inventory import AddStock, ShipStock
from streams.events.orders import ConfirmOrder, ShipOrder
from streams.events.sagas import ResumeSaga
from streams.topics import (
    INVENTORY_COMMANDS,
    INVENTORY_EVENTS,
    ORDER_COMMANDS,
    ORDER_EVENTS,
    PAYMENT_COMMANDS,
    PAYMENT_EVENTS,
    SAGA_COMMANDS,
)
from tables.orders import ORDERS
from tables.payments import PAYMENTS
from tables.sagas import SAGAS
from tables.stories import tree as stories
from tables.stories.tree import Node, Parts, story
from tests.unit.saga_world import STEP_TIMEOUT_S, STYLES, World
from tests.unit.test_saga_scenarios import ORDER, cancel, place, stock

TOPICS = (ORDER_COMMANDS, ORDER_EVENTS, INVENTORY_COMMANDS, INVENTORY_EVENTS, PAYMENT_COMMANDS, PAYMENT_EVENTS)


class Fact(NamedTuple):
    """What a record says, and what a node has to say."""

    id: str | None
    type: str
    topic: str
    caused_by: str | None


def recorded(world: World) -> set[Fact]:
    """All records of the order in the topics; those that this test sent have no cause."""
    found = set()
    for topic in TOPICS:
        for message in world.messages(topic):
            if getattr(message.payload, "order_id", None) == ORDER:
                cause = message.metadata.causation_id
                found.add(Fact(message.event_id, message.event_type, topic.name, cause))
    return found


def told(world: World) -> list[Node]:
    """The story that the rows tell."""
    history: list[Envelope[Any]] = [m for m in world.messages(ORDER_EVENTS) if m.aggregate_id == ORDER]
    return story(Parts(history, world.get(ORDERS, ORDER), world.get(SAGAS, ORDER), world.get(PAYMENTS, ORDER), ()))


def every_node(nodes: list[Node]) -> Iterator[Node]:
    """All nodes of trees, parents first; checks that children name their parent."""
    for node in nodes:
        yield node
        assert all(child.caused_by == node.id for child in node.children)
        yield from every_node(node.children)


def facts(nodes: list[Node]) -> set[Fact]:
    """What the nodes say."""
    return {Fact(node.id, node.type, node.topic, node.caused_by) for node in every_node(nodes)}


def confirmed(world: World) -> None:
    place(world)
    world.settle_for_good()


def shipped(world: World) -> None:
    confirmed(world)
    world.tell(ORDER_COMMANDS, ShipOrder(ORDER), "ship")
    world.deliver("decide-orders")


def cancelled_while_reserving(world: World) -> None:
    place(world)
    world.deliver("decide-orders")
    cancel(world)
    world.settle_for_good()


def cancelled_afterwards(world: World) -> None:
    confirmed(world)
    cancel(world)
    world.settle_for_good()


def payment_failed(world: World) -> None:
    world.bank.declines.add(ORDER)
    confirmed(world)


def out_of_stock(world: World) -> None:
    place(world, ("a", 1), ("b", 99), ("c", 1))
    world.settle_for_good()


def refused_before_and_afterwards(world: World) -> None:
    world.tell(ORDER_COMMANDS, ConfirmOrder(ORDER), "too-early")
    confirmed(world)
    world.tell(ORDER_COMMANDS, ConfirmOrder(ORDER), "again")
    world.settle()


def nobody_answered(world: World) -> None:
    place(world)
    world.settle(without=("decide-stock",))
    world.pass_time(STEP_TIMEOUT_S + 1)
    world.settle_for_good()


def refund_refused_once(world: World) -> None:
    world.bank.refuses_refunds[ORDER] = 1
    cancelled_afterwards(world)


PLACE, CANCEL, CONFIRM, SHIP = "order.place", "order.cancel", "order.confirm", "order.ship"
SCENARIOS: list[tuple[Callable[[World], None], str, list[str]]] = [
    (confirmed, "confirmed", [PLACE]),
    (shipped, "confirmed", [PLACE, SHIP]),
    (cancelled_while_reserving, "cancelled", [PLACE, CANCEL]),
    (cancelled_afterwards, "cancelled", [PLACE, CANCEL]),
    (payment_failed, "cancelled", [PLACE]),
    (out_of_stock, "cancelled", [PLACE]),
    (nobody_answered, "cancelled", [PLACE]),
    (refused_before_and_afterwards, "confirmed", [CONFIRM, PLACE, CONFIRM]),
    (refund_refused_once, "cancelled", [PLACE, CANCEL]),
]
"""What happens, where the order ends, and the commands that came from outside."""
NOT_TOLD: dict[tuple[Callable[[World], None], str], list[str]] = {
    # What a service answered to a try that was not the last is in its topic only.
    (refund_refused_once, "orchestration"): ["payment.refund_failed"],
    # Choreographed services remember later tries, and what became of lines that never were reserved, for themselves.
    (refund_refused_once, "choreography"): ["payment.refund", "payment.refund_failed", "payment.refunded"],
    (out_of_stock, "choreography"): ["inventory.released"],
}


def world_of(style: str, scenario: Callable[[World], None]) -> World:
    """A world in which this has happened."""
    world = World(style)
    stock(world)
    scenario(world)
    return world


@pytest.mark.parametrize(("scenario", "status", "outside"), SCENARIOS)
@pytest.mark.parametrize("style", STYLES)
def test_a_story_says_what_the_records_say(
    scenario: Callable[[World], None], status: str, outside: list[str], style: str
) -> None:
    world = world_of(style, scenario)
    assert world.get(ORDERS, ORDER).status == status
    said, written = facts(told(world)), recorded(world)
    assert said <= written
    assert sorted(fact.type for fact in written - said) == NOT_TOLD.get((scenario, style), [])
    assert len(list(every_node(told(world)))) == len(said)
    assert sorted(node.type for node in told(world)) == sorted(outside)


@pytest.mark.parametrize("style", STYLES)
def test_the_story_of_a_confirmed_order_goes_from_its_command_to_its_confirmation(style: str) -> None:
    def one_line(world: World) -> None:
        place(world, ("a", 2))
        world.settle_for_good()

    (root,) = told(world_of(style, one_line))
    chain = []
    while True:
        chain.append((root.kind, root.type, root.aggregate_id))
        if not root.children:
            break
        (root,) = root.children
    assert chain == [
        ("command", "order.place", ORDER),
        ("event", "order.placed", ORDER),
        ("command", "inventory.reserve", "a"),
        ("event", "inventory.reserved", "a"),
        ("command", "payment.charge", ORDER),
        ("event", "payment.received", ORDER),
        ("event", "order.confirmed", ORDER),
    ]


@pytest.mark.parametrize("style", STYLES)
def test_reasons_and_times_are_told(style: str) -> None:
    nodes = list(every_node(told(world_of(style, payment_failed))))
    details = {node.type: node.detail for node in nodes}
    assert (details["payment.failed"], details["order.cancelled"]) == ("card_declined", "card_declined")
    at = {node.id: node.at or "" for node in nodes}
    assert all(at[node.caused_by] <= (node.at or "") for node in nodes if node.caused_by is not None)
    versions = {node.type: node.aggregate_version for node in nodes if node.topic == ORDER_EVENTS.name}
    assert versions == {"order.placed": 1, "order.cancelled": 2}


def test_a_resumed_compensation_follows_from_the_command_that_resumed_it() -> None:
    def stuck_and_resumed(world: World) -> None:
        confirmed(world)
        world.tell(INVENTORY_COMMANDS, ShipStock("b", ORDER, 2), "too-early")
        world.settle()
        cancel(world)
        world.settle_for_good()
        world.tell(SAGA_COMMANDS, ResumeSaga(ORDER), "resume")
        world.settle()

    nodes = told(world_of("orchestration", stuck_and_resumed))
    resumed = [node for node in nodes if node.caused_by == "resume"]
    assert [(node.type, node.aggregate_id) for node in resumed] == [("inventory.release", "b")]


def test_a_saga_from_before_causes_were_kept_is_told_without_them() -> None:
    world = world_of("orchestration", confirmed)
    world.rows[SAGAS, ORDER] = msgspec.structs.replace(world.get(SAGAS, ORDER), causes={})
    assert [node.type for node in told(world)] == ["order.place", "payment.charge"]
    assert {fact.id for fact in facts(told(world))} == {fact.id for fact in recorded(world)}


def test_a_long_chain_is_told_in_parts() -> None:
    lines = [(f"p-{n}", 1) for n in range(90)]

    def many_lines(world: World) -> None:
        for product_id, quantity in lines:
            world.tell(INVENTORY_COMMANDS, AddStock(product_id, quantity), f"stock-{product_id}")
        world.bank.declines.add(ORDER)
        place(world, *lines)
        world.settle_for_good()

    world = world_of("orchestration", many_lines)
    trees = told(world)
    assert len(trees) > 1
    assert msgspec.json.decode(msgspec.json.encode(trees), type=list[Node]) == trees
    assert facts(trees) == recorded(world)
    assert all(depth(tree) <= stories.DEPTH_MAX for tree in trees)
    ids = {node.id for node in every_node(trees)}
    assert all(tree.caused_by in ids for tree in trees if tree.type != "order.place")


def depth(node: Node) -> int:
    """How many nodes the longest way down has."""
    return 1 + max(map(depth, node.children), default=0)
