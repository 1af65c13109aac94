"""Workloads whose handlers fail: those without failures, on failing workers, with operators who look after letters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path

from tests.chaos.driver import Driver
from tests.chaos.failure_books import HANDLED, FailureBooks, Place
from tests.chaos.faults import WORKER
from tests.chaos.operators import Letter, Operators
from tests.chaos.orders import COMMAND_TYPES, PLACE, Order
from tests.chaos.releases import Releases
from tests.chaos.sagas import Sagas
from tests.chaos.spoiler import HOPELESS, MISPLACED
from tests.chaos.verifier import COMMANDS, DEAD_LETTERS, EVENTS, check_promises, check_requests, count_broken
from tests.chaos.verify_balance import (
    check_nothing_is_left,
    copies_of_commands,
    count_failures,
    problems_at_any_moment,
    problems_at_the_end,
)
from tests.chaos.workload import Commands, Urls, Workload
from tests.chaos.world import Place as RecordPlace
from tests.chaos.world import World

SETTINGS = {
    "FAILING_SPOILED_PER_S": "4",
    "ORDERS_RETRY_BACKOFF": "0.05",
    "ORDERS_WAITING_PER_AGGREGATE_MAX": "20",  # few, so that topics stand still now and then
    "ORDERS_REPLAYS_MAX": "50",
}
PATIENCE_S = 300.0  # orders wait for operators, who can do little while partitions move all the time
Verdict = tuple[dict[str, list[str]], tuple[int, int], dict[str, float]]


class Failing(ABC):
    """A workload on failing workers. Only commands that clients sent are discarded, and those with no other way out."""

    releases: Sequence[Sequence[str]] = (("-m", "tests.chaos.failing_worker"),)
    sound: Sequence[str] = WORKER

    def __init__(self, inner: Workload, folder: Path) -> None:
        self._inner = inner
        self._at_moments: list[Mapping[str, int]] = []
        self._release = folder / "release"
        self._operators = Operators(Releases(self._release), self.may_discard)

    def settings(self, number: int) -> dict[str, str]:
        """See Workload."""
        return self._inner.settings(number) | SETTINGS | {"FAILING_RELEASE": str(self._release)}

    def around(self, urls: Urls) -> AbstractAsyncContextManager[object]:
        """See Workload."""
        return self._around(urls)

    @asynccontextmanager
    async def _around(self, urls: Urls) -> AsyncIterator[None]:
        async with self._inner.around(urls), self._operators.working(urls):
            yield

    def driver(self, seed: int, urls: Urls, bootstrap: str | None, http_share: float, orders_per_s: float) -> Driver:
        """See Workload."""
        driver = self._inner.driver(seed, urls, bootstrap, http_share, orders_per_s)
        driver.bears_failures, driver.patience_s = True, PATIENCE_S
        return driver

    def faults_are_over(self) -> None:
        """See Workload."""
        self._operators.mend_all()
        self._inner.faults_are_over()

    def is_settled(self, world: World) -> bool:
        """See Workload."""
        return not check_nothing_is_left(FailureBooks(world)) and self._inner.is_settled(world)

    def is_worth_a_look(self) -> bool:
        """Once a letter was open since the last look: nothing fails before workers have their partitions."""
        return self._operators.has_seen_open_letters

    def judge_moment(self, world: World) -> dict[str, list[str]]:
        """See Workload."""
        self._operators.has_seen_open_letters = False
        self._at_moments.append(count_failures(world))
        return problems_at_any_moment(world)

    async def look(self, world: World, urls: Urls) -> None:
        """See Workload."""
        await self._inner.look(world, urls)

    def judge(self, world: World) -> Verdict:
        """Where every record is; and then all that is judged without failures, for what was not discarded."""
        found, broken, figures = self.judge_others(world, Discarded(world))
        figures = {**figures, **count_failures(world)}
        figures |= {"letters_retried": self._operators.retries, "letters_discarded": self._operators.discards}
        figures |= {
            f"{what}_at_moments": sum(found[what] for found in self._at_moments) for what in ("waiting", "open")
        }
        return problems_at_the_end(world) | found, broken, figures

    @abstractmethod
    def may_discard(self, letter: Letter) -> bool:
        """Whether nobody waits for what this letter would come to."""

    @abstractmethod
    def judge_others(self, world: World, discarded: Discarded) -> Verdict:
        """See `judge`."""


class FailingCommands(Failing):
    """Orders without sagas. What comes of an order that lacks a command is for `verify_balance` to say."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Commands(), folder)

    def may_discard(self, letter: Letter) -> bool:
        """See Failing."""
        return bool(letter["topic"] == COMMANDS)

    def judge_others(self, world: World, discarded: Discarded) -> Verdict:
        """See Failing."""
        found, _, figures = self._inner.judge(discarded.world_without(world.orders))
        promised = [order for order in world.orders if (order.order_id or "").encode() not in discarded.keys]
        kept = world.without(promised, lambda record: record.topic == EVENTS and record.key in discarded.keys)
        found |= {"check_promises": check_promises(kept), "check_requests": check_requests(discarded.only_commands())}
        return {name: problems for name, problems in found.items() if problems}, count_broken(kept), figures


class FailingSagas(Failing):
    """Orders with sagas, of which none that is placed is discarded: customers wait for the saga's decision."""

    def __init__(self, inner: Sagas, folder: Path) -> None:
        super().__init__(inner, folder)

    def may_discard(self, letter: Letter) -> bool:
        """See Failing."""
        return bool(letter["topic"] == COMMANDS and letter["event_type"] != COMMAND_TYPES[PLACE])

    def judge_others(self, world: World, discarded: Discarded) -> Verdict:
        """See Failing."""
        return self._inner.judge(discarded.world_without([discarded.order_without(order) for order in world.orders]))


class Discarded:
    """What was discarded of the commands of orders, and what no client has meant to be one."""

    def __init__(self, world: World) -> None:
        self._world = world
        books = FailureBooks(world)
        letters = [letter for letter in books.letters if letter.row["topic"] == COMMANDS]
        spoiled = {letter.place for letter in letters if letter.row["error_type"] in (*HOPELESS, *MISPLACED)}
        given_up = {letter.place for letter in letters if letter.state == "discarded"} - spoiled
        moved = {letter.row["event_id"] for letter in letters if letter.is_moved}
        self._spoiled, self._given_up = _places(spoiled), _places(given_up)
        self._repeated: set[RecordPlace] = set()
        self._ids: set[str] = set()
        for command_id, copies in copies_of_commands(books).items():
            handled = [copy.record.place for copy in copies if copy.fate in HANDLED]
            if not handled:
                self._ids.add(command_id)
            if command_id in moved:  # a copy that nobody sent
                self._repeated |= {copy.record.place for copy in copies} - {min(handled, default=None)}
        self.keys = {record.key for record in world.records(COMMANDS) if record.place in self._given_up}

    def world_without(self, orders: Sequence[Order]) -> World:
        """The world as if nobody had sent what was discarded, and nothing had ever failed."""
        dropped = self._spoiled | self._repeated | self._given_up
        return self._world.without(orders, lambda record: record.topic == DEAD_LETTERS or record.place in dropped)

    def only_commands(self) -> World:
        """The world without what only the spoiler, or an operator, has written."""
        dropped = self._spoiled | self._repeated
        return self._world.without(self._world.orders, lambda record: record.place in dropped)

    def order_without(self, order: Order) -> Order:
        """An order without the steps that were discarded."""
        return replace(order, steps=[step for step in order.steps if step.command_id not in self._ids])


def _places(letters: set[Place]) -> set[RecordPlace]:
    return {(COMMANDS, place.partition, place.offset) for place in letters}
