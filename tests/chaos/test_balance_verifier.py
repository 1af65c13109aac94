"""The verifier of failures finds what it is there to find: each kind of damage to a sound world is noticed."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from agents import orders as orders_service
from engine.declare.envelope import Envelope
from engine.declare.errors import NotRetryable
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.app import EngineApp
from engine.log.embedded.broker import EmbeddedBroker
from streams.events.orders import ConfirmOrder
from streams.topics import ORDER_COMMANDS
from tables.orders import ORDERS
from tests.apps import caught_up, make_settings, publish, row, running, wait_until
from tests.chaos.failures import Discarded
from tests.chaos.orders import CANCEL, CONFIRM, EVENT_TYPES, PLACE, Order, new_step, random_order
from tests.chaos.verify_balance import count_failures, problems_at_any_moment, problems_at_the_end
from tests.chaos.world import IDENTITY_KEY, Record, World, read_log
from tests.letters import closed_letters, discard, open_letters, retry

# Each order is placed, confirmed and cancelled. Its name says what becomes of the confirmation; the cancellation waits
# behind the open and the retried one.
FINE, OPEN, RETRIED, RESOLVED, DISCARDED = NAMES = ("fine", "open", "retried", "resolved", "discarded")
FAR_MS = 3_600_000
EVENTS, LETTERS = "order-events", "dead-letters"
LETTER_ROWS, CLOSED_ROWS = "orders-dead-letters-changelog", "orders-closed-dead-letters-changelog"
WAITING_ROWS, LANE_ROWS = "orders-waiting-records-changelog", "orders-waiting-aggregates-changelog"
MARKS, POSITIONS, COUNTS = (f"orders-{n}-changelog" for n in ("handled-commands", "positions", "dead-letter-counts"))


class Broken(NotRetryable):
    """The handler of confirmations is broken."""


class Scene:
    """What is in the topics, to be damaged; orders by what becomes of them."""

    def __init__(self) -> None:
        rnd = random.Random(1)
        self.orders = {name: random_order(rnd, name, 0, 0.0) for name in NAMES}
        for order in self.orders.values():
            order.steps = [new_step(rnd, kind, EVENT_TYPES[kind]) for kind in (PLACE, CONFIRM, CANCEL)]
        self.mended = {self.command(FINE, 1)}
        self.records: list[Record] = []
        self.ends: dict[tuple[str, int], int] = {}

    def command(self, name: str, step: int) -> str:
        """The id of a command."""
        return self.orders[name].steps[step].command_id

    def key(self, name: str) -> bytes:
        """The key of an order."""
        return (self.orders[name].order_id or "").encode()

    def world(self) -> World:
        """What the verifier is shown."""
        world = World(())
        world.add(self.records, self.ends)
        return world

    def noticed_by(self) -> set[str]:
        """The checks that find a problem at any moment."""
        return set(problems_at_any_moment(self.world()))

    # ---- finding and damaging

    def find(self, topic: str, wanted: Callable[[Record], object]) -> int:
        """The place of the last such record, which is the last word on its key."""
        found = [n for n, record in enumerate(self.records) if record.topic == topic and record.key != IDENTITY_KEY]
        return max(n for n in found if self.records[n].value and wanted(self.records[n]))

    def event(self, name: str, step: int) -> int:
        """The place of the event that a command caused."""
        return self.find(EVENTS, lambda r: r.body["metadata"]["causationId"] == self.command(name, step))

    def of(self, name: str) -> Callable[[Record], bool]:
        """Whether a row is about an order."""
        return lambda record: self.key(name) in record.key

    def letter_of(self, name: str) -> Callable[[Record], bool]:
        """Whether a row is the letter of an order's confirmation."""
        return lambda record: record.body["event_id"] == self.command(name, 1)

    def append(self, place: int, key: bytes | None = None, value: bytes | None = None, **values: Any) -> None:
        """Let a record follow that is like another one, but for its key, its value or some of what is in that."""
        origin = self.records[place]
        changed = value or json.dumps(json.loads(origin.value or b"") | values).encode()
        self.records.append(origin._replace(offset=10**6, key=key or origin.key, value=changed))

    def remove_row(self, place: int) -> None:
        """Let a tombstone follow."""
        self.records.append(self.records[place]._replace(offset=10**6, value=None))

    def apply(self, name: str, step: int) -> None:
        """Let a command take effect that should not have; with its mark."""
        origin = self.event(name, 0)
        body = self.records[origin].body
        self.append(
            origin, eventId="another", metadata=body["metadata"] | {"causationId": self.command(name, step)},
            aggregateVersion=9,
        )  # fmt: skip
        mark = self.find(MARKS, lambda record: record.key.decode() == self.command(name, 0))
        self.append(mark, key=self.command(name, step).encode())


async def play(scene: Scene, app: EngineApp) -> None:
    """Send everything, then retry, discard and leave letters as the orders are named."""
    for order in scene.orders.values():
        await publish(app, ORDER_COMMANDS, order.order_id or "", *(order.command(step) for step in order.steps))
    fine = scene.orders[FINE]
    await publish(app, ORDER_COMMANDS, fine.order_id or "", b"{no json")
    for name in (FINE, RESOLVED):
        elsewhere, order = 1 - app.engine.partition_for(scene.key(name)), scene.orders[name]
        copy = scene.key(name), order.command(order.steps[0]), ()
        await app.engine.broker.publish(ORDER_COMMANDS.name, elsewhere, [copy])
    await caught_up(app, "decide-orders")
    letters = {(letter.key, letter.error_type): id for id, letter in open_letters(app).items()}
    assert len(letters) == 7
    scene.mended.add(scene.command(RESOLVED, 1))
    await retry(app, letters[scene.key(RESOLVED), "Broken"], letters[scene.key(FINE), "WrongPartition"])
    await retry(app, letters[scene.key(RETRIED), "Broken"], not_before_ms=int(time.time() * 1000) + FAR_MS)
    await discard(app, letters[scene.key(DISCARDED), "Broken"])
    await discard(app, letters[scene.key(RESOLVED), "WrongPartition"])
    await wait_until(lambda: len(closed_letters(app)) == 4, "letters are closed")
    await wait_until(lambda: all(is_cancelled(app, scene.orders[n]) for n in (RESOLVED, DISCARDED)), "lanes went on")
    await caught_up(app)


def is_cancelled(app: EngineApp, order: Order) -> bool:
    found = row(app, ORDERS, order.order_id or "")
    return found is not None and found.status == "cancelled"


@pytest.fixture
async def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    """A sound world."""
    scene, by_payload = Scene(), orders_service.commands.handlers
    handle = by_payload[ConfirmOrder]

    def fail(command: Envelope[Any], work: UnitOfWork) -> None:
        handle(command, work)
        if command.event_id not in scene.mended:
            raise Broken

    monkeypatch.setitem(by_payload, ConfirmOrder, fail)
    async with running(make_settings("memory://", tmp_path, app_id="orders")) as app:
        await play(scene, app)
        assert isinstance(app.engine.broker, EmbeddedBroker)
        records, ends = read_log(app.engine.broker.log)
    scene.records, scene.ends = list(records), dict(ends)
    return scene


def test_a_sound_world_has_no_problems_at_any_moment(scene: Scene) -> None:
    assert problems_at_any_moment(scene.world()) == {}
    found = count_failures(scene.world())
    assert (found["open"], found["resolved"], found["discarded"], found["moved"]) == (2, 1, 2, 1)
    assert found["waiting"] == 3, "the retried one, and what is behind it and behind the open one"


def test_a_copy_in_the_wrong_partition_is_no_command_of_a_client_whether_it_was_moved_or_discarded(
    scene: Scene,
) -> None:
    discarded = Discarded(scene.world())
    sent = [record.body["eventId"] for record in discarded.only_commands().records(ORDER_COMMANDS.name)]
    assert sorted(sent) == sorted(step.command_id for order in scene.orders.values() for step in order.steps)
    assert discarded.keys == {scene.key(DISCARDED)}


def test_at_the_end_nothing_may_wait_and_no_letter_may_be_open(scene: Scene) -> None:
    problems = problems_at_the_end(scene.world())
    assert set(problems) == {"check_nothing_is_left"}
    assert len(problems["check_nothing_is_left"]) == 6, "what waits, and what is open or being retried"


def lose_event(scene: Scene) -> None:
    del scene.records[scene.event(FINE, 2)]


def forget_mark(scene: Scene) -> None:
    scene.remove_row(scene.find(MARKS, lambda record: record.key.decode() == scene.command(FINE, 2)))


def repeat_event(scene: Scene) -> None:
    place = scene.event(FINE, 1)
    scene.records.insert(place, scene.records[place])


def swap_events(scene: Scene) -> None:
    one, other = scene.event(FINE, 1), scene.event(FINE, 2)
    scene.records[one], scene.records[other] = scene.records[other], scene.records[one]


def apply_and_forget_what_waits(scene: Scene) -> None:
    """The cancellation takes effect although the confirmation before it is an open letter."""
    scene.apply(OPEN, 2)
    scene.remove_row(scene.find(WAITING_ROWS, scene.of(OPEN)))
    lane = scene.find(LANE_ROWS, scene.of(OPEN))
    scene.append(lane, end=json.loads(scene.records[lane].value or b"")["end"] - 1)


def lose_what_waits(scene: Scene) -> None:
    scene.remove_row(scene.find(WAITING_ROWS, scene.of(OPEN)))


def apply_what_is_discarded(scene: Scene) -> None:
    scene.apply(DISCARDED, 1)


def apply_what_waits(scene: Scene) -> None:
    scene.apply(OPEN, 2)


def apply_what_is_open(scene: Scene) -> None:
    scene.apply(OPEN, 1)


def apply_what_is_not_passed(scene: Scene) -> None:
    decided = [n for n, r in enumerate(scene.records) if r.topic == POSITIONS and b"decide-orders" in r.key]
    for place in decided:
        scene.append(place, offset=0)


def lose_row_of_letter(scene: Scene) -> None:
    scene.remove_row(scene.find(LETTER_ROWS, scene.letter_of(OPEN)))


def lose_copy_of_letter(scene: Scene) -> None:
    del scene.records[scene.find(LETTERS, lambda record: record.key == scene.key(OPEN))]


def change_letter(scene: Scene) -> None:
    place = scene.find(LETTERS, lambda record: record.key == scene.key(OPEN))
    scene.records[place] = scene.records[place]._replace(value=b"{}")


def double_letter(scene: Scene) -> None:
    place = scene.find(CLOSED_ROWS, scene.letter_of(DISCARDED))
    scene.append(place, key=(1).to_bytes(8, "big"))


def reopen_letter(scene: Scene) -> None:
    """It is closed, and among the open ones as well."""
    place = scene.find(CLOSED_ROWS, scene.letter_of(RESOLVED))
    row_of_open = scene.find(LETTER_ROWS, scene.letter_of(OPEN))
    scene.records.append(scene.records[place]._replace(topic=scene.records[row_of_open].topic, offset=10**6))


def let_open_letter_wait(scene: Scene) -> None:
    letter = scene.records[scene.find(LETTER_ROWS, scene.letter_of(OPEN))].body
    scene.append(scene.find(WAITING_ROWS, scene.of(OPEN)), offset=letter["offset"])


def lose_retry(scene: Scene) -> None:
    """What is to be retried does not wait any more."""
    retried = scene.records[scene.find(LETTER_ROWS, scene.letter_of(RETRIED))].body["offset"]
    scene.remove_row(
        scene.find(WAITING_ROWS, lambda r: scene.of(RETRIED)(r) and json.loads(r.value or b"")["offset"] == retried)
    )


def lose_lane(scene: Scene) -> None:
    scene.remove_row(scene.find(LANE_ROWS, scene.of(OPEN)))


def unpark_lane(scene: Scene) -> None:
    scene.append(scene.find(LANE_ROWS, scene.of(OPEN)), parked=None)


def miscount(scene: Scene) -> None:
    scene.append(scene.find(COUNTS, lambda record: record.key == b"order-commands"), count=9)


@pytest.mark.parametrize(
    ("damage", "noticed_by"),
    [
        pytest.param(lose_event, "check_applied", id="a lost command"),
        pytest.param(lose_event, "check_order_of_effects", id="a gap in an order's effects"),
        pytest.param(forget_mark, "check_applied", id="a forgotten mark"),
        pytest.param(repeat_event, "check_applied", id="applied twice"),
        pytest.param(swap_events, "check_order_of_effects", id="applied out of order"),
        pytest.param(apply_and_forget_what_waits, "check_nothing_overtook", id="applied behind an open letter"),
        pytest.param(lose_what_waits, "check_nothing_overtook", id="not waiting behind an open letter"),
        pytest.param(lose_what_waits, "check_lanes", id="a lost record in a lane"),
        pytest.param(lose_what_waits, "check_applied", id="a lost record that waited is a lost command"),
        pytest.param(apply_what_waits, "check_applied", id="waiting and applied"),
        pytest.param(apply_what_is_open, "check_applied", id="an open letter and applied"),
        pytest.param(apply_what_is_discarded, "check_applied", id="discarded and applied"),
        pytest.param(apply_what_is_not_passed, "check_applied", id="applied beyond the position"),
        pytest.param(apply_what_is_not_passed, "check_places", id="failed beyond the position"),
        pytest.param(lose_row_of_letter, "check_letters", id="a dead letter without a row"),
        pytest.param(lose_row_of_letter, "check_applied", id="a lost dead letter is a lost command"),
        pytest.param(lose_copy_of_letter, "check_letters", id="a dead letter that nobody was told of"),
        pytest.param(change_letter, "check_letters", id="a dead letter with other bytes"),
        pytest.param(double_letter, "check_places", id="two dead letters of a record"),
        pytest.param(reopen_letter, "check_places", id="open and closed"),
        pytest.param(let_open_letter_wait, "check_places", id="an open letter and waiting"),
        pytest.param(lose_retry, "check_places", id="a retry that never comes"),
        pytest.param(lose_lane, "check_lanes", id="waiting for nothing"),
        pytest.param(unpark_lane, "check_lanes", id="a lane that nothing gives back"),
        pytest.param(miscount, "check_letters", id="a wrong count of letters"),
    ],
)
def test_damage_is_noticed(scene: Scene, damage: Callable[[Scene], None], noticed_by: str) -> None:
    damage(scene)
    assert noticed_by in scene.noticed_by()


def test_a_record_that_was_sent_home_and_never_came_is_noticed(scene: Scene) -> None:
    moved = scene.records[scene.find(CLOSED_ROWS, lambda record: record.body["error_type"] == "WrongPartition")]
    command_id = moved.body["event_id"].encode()

    def is_at_home(record: Record) -> bool:
        return record.topic == ORDER_COMMANDS.name and record.partition != moved.partition

    scene.records = [r for r in scene.records if not (is_at_home(r) and command_id in (r.value or b""))]
    problems = problems_at_the_end(scene.world())["check_nothing_is_left"]
    assert any("sent to another partition" in problem for problem in problems)
