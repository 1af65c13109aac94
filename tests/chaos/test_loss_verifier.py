"""The verifier lets records be lost only where the system has named them, exactly, wherever people look."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engine.faust.app import EngineApp
from engine.log.embedded.broker import EmbeddedBroker
from engine.positions.acceptance import accept_losses
from streams.topics import ORDER_COMMANDS
from tests.apps import caught_up, make_settings, publish, running, wait_until
from tests.chaos.loss_faults import choose, unread_of
from tests.chaos.named_losses import Misnamed, Said, named_in
from tests.chaos.orders import REJECTED, Order, random_order
from tests.chaos.verifier import COMMANDS
from tests.chaos.workload import Commands
from tests.chaos.world import DOCTOR, HEALTH, LOG, PLACES, Loss, Named, Record, World, read_log
from tests.integration.test_engine_losses import details
from tests.integration.web import go_on, hold_up
from tests.lost_records import remove_before

ORDERS = 40


@dataclass
class Lossy:
    """What is left behind by a run that lost commands, all of which were named; `ends` are those of the log."""

    orders: list[Order]
    records: list[Record]
    ends: Mapping[tuple[str, int], int]
    loss: Loss

    def problems(self) -> dict[str, list[str]]:
        """What the verifier finds."""
        world = World(self.orders)
        world.lose([self.loss])
        world.add(self.records, self.ends)
        return Commands().judge(world)[0]

    def say(self, change: Callable[[Named], Named | None], *places: str) -> None:
        """Let something else have been said in these places, or in all."""
        said = {
            place: {changed for named in self.loss.said[place] if (changed := change(named)) is not None}
            for place in places or PLACES
        }
        self.loss = replace(self.loss, said={**self.loss.said, **said})


@pytest.fixture
async def lossy(tmp_path: Path) -> Lossy:
    """Half of the orders are handled, and commands of one partition are removed before the other half is."""
    rnd = random.Random(1)
    orders = [random_order(rnd, "test", number, 0.0, customers=5) for number in range(ORDERS)]
    async with running(make_settings("memory://", tmp_path, app_id="orders")) as app:
        await send(app, orders[: ORDERS // 2])
        await caught_up(app, "decide-orders")
        await hold_up(app)
        await send(app, orders[ORDERS // 2 :])
        world = World(())
        world.add(*read_log(log_of(app).log))
        number, before = choose(rnd, {place: found[1:-1] for place, found in unread_of(world).items()})
        gone = [r for r in world.records(COMMANDS) if r.partition == number and r.offset < before]
        await remove_before(app.engine.broker, COMMANDS, number, before)
        await go_on(app)
        await wait_until(lambda: details(app), "the loss is named")
        named = set(named_in("; ".join(details(app))))
        assert len(await accept_losses(app.engine, COMMANDS, number, "ann", "a test")) == 1
        await caught_up(app, "decide-orders")
        await caught_up(app)
        records, ends = read_log(log_of(app).log)
    return Lossy(orders, list(records), ends, Loss(COMMANDS, gone, {number: before}, dict.fromkeys(PLACES, named)))


async def send(app: EngineApp, orders: list[Order]) -> None:
    for order in orders:
        for step in order.steps:
            await publish(app, ORDER_COMMANDS, order.order_id or "", order.command(step))
            step.acknowledged = True


def log_of(app: EngineApp) -> EmbeddedBroker:
    assert isinstance(app.engine.broker, EmbeddedBroker)
    return app.engine.broker


def test_a_loss_that_is_named_exactly_is_no_problem(lossy: Lossy) -> None:
    assert lossy.problems() == {}


def test_a_loss_that_is_not_named_is_found_and_so_are_the_promises_it_breaks(lossy: Lossy) -> None:
    lossy.say(lambda named: None)
    assert {"check_losses", "check_promises", "check_commands"} <= lossy.problems().keys()
    assert "is gone without effect, and not named" in " ".join(lossy.problems()["check_losses"])


def test_a_loss_that_is_named_in_part_is_found(lossy: Lossy) -> None:
    lossy.say(lambda named: named._replace(first=named.first + 1))
    assert "is gone without effect, and not named" in " ".join(lossy.problems()["check_losses"])


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        pytest.param(
            lambda named: named._replace(first=0), "took effect, and is named as lost", id="from too early on"
        ),
        pytest.param(lambda named: named._replace(end=named.end + 1), "too wide: the partition begins", id="too far"),
        pytest.param(lambda named: named._replace(end=None), "too wide: the partition begins", id="without an end"),
        pytest.param(
            lambda named: named._replace(partition=(named.partition + 1) % 4), "too wide", id="another partition"
        ),
        pytest.param(lambda named: named._replace(agent="accept-requests"), "does not read it", id="another agent"),
    ],
)
def test_a_name_that_covers_more_than_is_lost_is_found(
    lossy: Lossy, change: Callable[[Named], Named], problem: str
) -> None:
    lossy.say(change)
    assert problem in " ".join(lossy.problems()["check_losses"])


@pytest.mark.parametrize("place", PLACES)
def test_a_loss_that_is_not_named_wherever_people_look_is_found(lossy: Lossy, place: str) -> None:
    lossy.say(lambda named: None, place)
    (problem,) = lossy.problems()["check_losses"]
    assert problem.startswith(f"{place} does not name Named(topic='order-commands'")


def test_a_loss_that_was_accepted_and_is_not_written_down_is_found(lossy: Lossy) -> None:
    lossy.records = [record for record in lossy.records if record.topic != "orders-accepted-losses-changelog"]
    (problem,) = lossy.problems()["check_losses"]
    assert problem.endswith("is not written down")


def test_beside_what_is_named_everything_has_to_be_there_once(lossy: Lossy) -> None:
    place = next(n for n, record in enumerate(lossy.records) if record.topic == "order-events")
    event = lossy.records[place]
    lossy.records.insert(place, event)
    assert "check_commands" in lossy.problems()
    lossy.records = [record for record in lossy.records if record != event]
    assert {"check_commands", "check_promises"} <= lossy.problems().keys()


def test_what_is_asked_of_an_order_that_was_lost_is_refused(lossy: Lossy) -> None:
    refused = [record for record in lossy.records if record.topic == "order-events" and REJECTED in str(record.value)]
    lost = {record.key for record in lossy.loss.gone if any(n.covers(record) for n in lossy.loss.named())}
    assert lost & {record.key for record in refused}


def test_names_are_read_from_what_people_read() -> None:
    text = (
        "12:00:00 ERROR order-commands/2: 512 records, offsets 0 to 511, were removed before decide-orders had read "
        "them: then `orders accept-loss order-commands 2 --reason ...`; order-requests/0: 1 record, offset 7, was "
        "removed before accept-requests had read it; order-commands/1: the topic was deleted and made anew; what "
        "decide-orders had not read of the one before is gone, and its position 9 says nothing about the new one"
    )
    assert set(named_in(text)) == {
        Named("order-commands", 2, "decide-orders", 0, 512),
        Named("order-requests", 0, "accept-requests", 7, 8),
        Named("order-commands", 1, "decide-orders", 9, None),
    }
    said = Said()
    said.note(HEALTH, "order-requests", text)
    assert not said.agree()
    for place in (DOCTOR, LOG):
        said.note(place, "order-requests", text)
    assert said.agree()
    with pytest.raises(Misnamed):
        list(named_in("order-commands/2: 3 records, offsets 0 to 511, were removed before decide-orders had read them"))
