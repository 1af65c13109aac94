"""Workloads of a chaos run: what is asked of the workers, and how what came of it is judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from typing import Final, Protocol

from tests.chaos.driver import Driver
from tests.chaos.faults import WORKER
from tests.chaos.verifier import check_positions, check_requests, count_broken, find_problems
from tests.chaos.verify_balance import problems_at_any_moment
from tests.chaos.verify_losses import beside_losses, check_losses, count_losses
from tests.chaos.world import World

Urls = Callable[[], Sequence[str]]


class Workload(Protocol):
    """What is asked of the workers, and how what came of it is judged."""

    releases: Sequence[Sequence[str]]
    """How workers are started: with the first of these, and after each rolling restart with the next one."""
    sound: Sequence[str]
    """How a worker is started that has all tables, and no bugs."""

    def settings(self, number: int) -> dict[str, str]:
        """Settings of the first, second... worker."""

    def around(self, urls: Urls) -> AbstractAsyncContextManager[object]:
        """What has to run as long as workers do."""

    def driver(self, seed: int, urls: Urls, bootstrap: str | None, http_share: float, orders_per_s: float) -> Driver:
        """The clients."""

    def faults_are_over(self) -> None:
        """There are no more faults from now on, and no new orders."""

    def is_settled(self, world: World) -> bool:
        """Whether nothing more will happen."""

    def is_worth_a_look(self) -> bool:
        """Whether a look at this moment shows anything that a look at workers at rest would not."""

    def judge_moment(self, world: World) -> dict[str, list[str]]:
        """Problems by check while all workers are killed, in the middle of everything."""

    async def look(self, world: World, urls: Urls) -> None:
        """Ask the running workers for what is to be compared with the topics."""

    def judge(self, world: World) -> tuple[dict[str, list[str]], tuple[int, int], dict[str, float]]:
        """Problems by check, how many effects are lost and how many were repeated, and figures."""


class Commands:
    """Orders without sagas: clients place, confirm and cancel."""

    releases: Sequence[Sequence[str]] = (WORKER,)
    sound: Sequence[str] = WORKER

    def settings(self, number: int) -> dict[str, str]:
        """See Workload."""
        return {"ORDERS_SAGA": "none"}

    def around(self, urls: Urls) -> AbstractAsyncContextManager[object]:
        """See Workload."""
        return nullcontext()

    def driver(self, seed: int, urls: Urls, bootstrap: str | None, http_share: float, orders_per_s: float) -> Driver:
        """See Workload."""
        return Driver(seed, urls, bootstrap, http_share, orders_per_s)

    def faults_are_over(self) -> None:
        """Clients see through what they have begun."""

    def is_settled(self, world: World) -> bool:
        """See Workload."""
        return is_processed(world)

    def is_worth_a_look(self) -> bool:
        """See Workload."""
        return True

    def judge_moment(self, world: World) -> dict[str, list[str]]:
        """See Workload."""
        return problems_at_any_moment(world)

    async def look(self, world: World, urls: Urls) -> None:
        """Nothing: the tables say it all."""

    def judge(self, world: World) -> tuple[dict[str, list[str]], tuple[int, int], dict[str, float]]:
        """See Workload."""
        rest, losses = beside_losses(world), check_losses(world)
        # What a request became was written, also when it was lost after that.
        found = find_problems(rest) | {"check_requests": check_requests(world), "check_losses": losses}
        return {name: problems for name, problems in found.items() if problems}, count_broken(rest), count_losses(world)


COMMANDS_ALONE: Final[Workload] = Commands()


def is_processed(world: World) -> bool:
    """Whether the agents have passed everything."""
    return not check_positions(world)
