"""A command takes effect once: however often it is delivered, whenever a dead letter of it is tried again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from agents import inventory
from engine.declare.envelope import Envelope, Metadata, encode_envelope, new_envelope
from engine.declare.errors import NotRetryable
from engine.declare.unit_of_work import UnitOfWork
from engine.failures import service as service_of_letters
from engine.faust.app import EngineApp
from streams.events.inventory import AddStock
from streams.settings import Settings
from streams.topics import INVENTORY_COMMANDS, INVENTORY_EVENTS
from tables.inventory import STOCK
from tests.apps import (
    DURABLE_TRANSPORTS,
    TRANSPORTS,
    Tally,
    at_rest,
    broker_url,
    caught_up,
    crash,
    make_settings,
    publish,
    read_topic,
    row,
    running,
    start,
    unique,
    wait_until,
)
from tests.letters import closed_letters, discard, open_letters, retry
from tests.unit.test_envelope import TEN_O_CLOCK

SERVICES = [inventory.service, service_of_letters.service]


class Broken(NotRetryable):
    """The handler is broken until somebody mends it."""


class Bug:
    """Makes the handler of AddStock fail, after it has done its work, for these commands of any product."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.commands: set[str] = set()
        self._handle = inventory.commands.handlers[AddStock]
        monkeypatch.setitem(inventory.commands.handlers, AddStock, self.fail)

    def fail(self, command: Envelope[Any], work: UnitOfWork) -> None:
        self._handle(command, work)
        if command.event_id.rpartition("/")[2] in self.commands:
            raise Broken(command.event_id)


@pytest.fixture
def bug(monkeypatch: pytest.MonkeyPatch) -> Bug:
    return Bug(monkeypatch)


@pytest.fixture(params=TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


def add(product_id: str, command: str, quantity: int = 5) -> bytes:
    """A command whose id no other test has: an id that was processed is a duplicate whatever its key is."""
    payload, command_id = AddStock(product_id, quantity), f"{product_id}/{command}"
    return encode_envelope(
        new_envelope(payload, event_id=command_id, aggregate_id=product_id, timestamp=TEN_O_CLOCK, metadata=Metadata())
    )


def on_hand(app: EngineApp, product_id: str) -> int:
    stock = row(app, STOCK, product_id)
    return stock.on_hand if stock is not None else 0


async def events(app: EngineApp, product_id: str) -> int:
    return len([record for record in await read_topic(app, INVENTORY_EVENTS) if record.key == product_id.encode()])


async def letter_of(app: EngineApp, product_id: str) -> str:
    """The open letter of a product, once all is done that can be."""
    await at_rest(app)
    (found,) = [text for text, letter in open_letters(app).items() if letter.key == product_id.encode()]
    return found


async def test_ten_deliveries_have_one_effect(settings: Settings) -> None:
    product = unique("product")
    async with running(settings, SERVICES) as app:
        await publish(app, INVENTORY_COMMANDS, product, *[add(product, "c-1")] * 10)
        await caught_up(app)
        assert (on_hand(app, product), await events(app, product)) == (5, 1)


async def test_a_failed_handler_leaves_no_mark(settings: Settings, bug: Bug) -> None:
    product = unique("product")
    bug.commands = {"c-1"}
    async with running(settings, SERVICES) as app:
        await publish(app, INVENTORY_COMMANDS, product, add(product, "c-1"))
        letter = await letter_of(app, product)
        assert (on_hand(app, product), await events(app, product)) == (0, 0)
        bug.commands.clear()
        await retry(app, letter)
        await at_rest(app)
        assert (on_hand(app, product), await events(app, product)) == (5, 1)


async def test_a_letter_and_the_copies_behind_it_apply_once(settings: Settings, bug: Bug) -> None:
    product = unique("product")
    bug.commands = {"c-1"}
    async with running(settings, SERVICES) as app:
        await publish(app, INVENTORY_COMMANDS, product, *[add(product, "c-1")] * 3)
        letter = await letter_of(app, product)
        bug.commands.clear()
        await retry(app, letter)
        await at_rest(app)
        assert (on_hand(app, product), await events(app, product)) == (5, 1)


async def test_a_letter_that_is_tried_again_after_copies_of_it_were_processed_applies_once(settings: Settings) -> None:
    """The copy that could not be read parks nothing, so others of the same command are processed before it."""
    product = unique("product")
    readable = add(product, "c-1")
    unreadable = readable.replace(b'"quantity":5', b'"quantity":"five"')
    async with running(settings, SERVICES) as app:
        await publish(app, INVENTORY_COMMANDS, product, unreadable, readable, readable)
        letter = await letter_of(app, product)
        assert (on_hand(app, product), await events(app, product)) == (5, 1)
        await retry(app, letter, value=readable.decode())  # mended, and still the same command
        await at_rest(app)
        assert (on_hand(app, product), await events(app, product)) == (5, 1)
        assert letter in closed_letters(app)


async def test_an_edited_letter_is_another_command_and_applies_beside_its_copies(settings: Settings, bug: Bug) -> None:
    product = unique("product")
    bug.commands = {"c-1"}
    async with running(settings, SERVICES) as app:
        await publish(app, INVENTORY_COMMANDS, product, add(product, "c-1"), add(product, "c-2", 7))
        letter = await letter_of(app, product)
        await retry(app, letter, value=add(product, "c-3", 2).decode())
        await at_rest(app)
        assert (on_hand(app, product), await events(app, product)) == (9, 2)
        closed = closed_letters(app)[letter]
        edit = next(action for action in closed.actions if action.action == "edit")
        assert {change["path"] for change in json.loads(edit.detail or "")} == {"$.eventId", "$.payload.quantity"}


@pytest.mark.parametrize("durable", DURABLE_TRANSPORTS)
async def test_between_agents_the_transaction_delivers_once_without_any_mark(
    request: pytest.FixtureRequest, tmp_path: Path, durable: str
) -> None:
    """One agent feeds another. An output exists if and only if the position has moved past its input."""
    request.param = durable
    settings = make_settings(broker_url(request), tmp_path)
    first, second = Tally("first", "first"), Tally("second", "second")
    second.source = first.output
    second.service.agents["second"].topic = first.output
    services, failures = [first.service, second.service], ["after 3", "after 5", "before 2", "after 5"]

    def probe(step: str) -> None:
        if failures and step == failures[0]:
            failures.pop(0)
            raise ConnectionError("nobody knows what became of the commit")

    values = [str(number) for number in range(40)]
    app = await start(settings, services, probe=probe)
    for value in values:
        await publish(app, first.source, "k", value.encode())
    await wait_until(lambda: not failures, "all commits that were to fail have failed")
    await crash(app)
    async with running(settings, services) as app:
        await caught_up(app, "first")
        await caught_up(app, "second")
        await second.check(app, {"k": values})


async def test_a_letter_that_is_too_old_is_not_tried_again_but_may_be_edited_or_discarded(
    settings: Settings, bug: Bug
) -> None:
    product = unique("product")
    bug.commands = {"c-1"}
    old = settings.model_copy(update={"replay_max_age": 0.001})
    async with running(old, SERVICES) as app:
        await publish(app, INVENTORY_COMMANDS, product, add(product, "c-1"), add(product, "c-2"))
        letter = await letter_of(app, product)
        bug.commands.clear()
        await retry(app, letter)
        assert await letter_of(app, product) == letter
        assert open_letters(app)[letter].replays == 0
        await discard(app, letter)
        await at_rest(app)
        assert on_hand(app, product) == 5


async def test_a_record_in_the_wrong_partition_or_without_a_key_is_sent_to_where_it_belongs(settings: Settings) -> None:
    product, other = unique("product"), unique("product")
    async with running(settings, SERVICES) as app:
        broker, partitions = app.engine.broker, app.engine.settings.partitions
        wrong = (app.engine.partition_for(product.encode()) + 1) % partitions
        await broker.publish(INVENTORY_COMMANDS.name, wrong, [(product.encode(), add(product, "c-1"), ())])
        await broker.publish(INVENTORY_COMMANDS.name, wrong, [(None, add(other, "c-1"), ())])
        await at_rest(app)
        ids = f"{product}/c-1", f"{other}/c-1"
        ours = {text: letter for text, letter in open_letters(app).items() if letter.event_id in ids}
        assert sorted(letter.error_type for letter in ours.values()) == ["MissingKey", "WrongPartition"]
        await retry(app, *ours)
        await at_rest(app)
        assert (on_hand(app, product), on_hand(app, other)) == (5, 5)
        assert {closed_letters(app)[text].state for text in ours} == {"resolved"}
