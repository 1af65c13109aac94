"""A worker whose handlers fail at random but repeatably: `python -m tests.chaos.failing_worker`.

What a record meets depends on its agent and its event id alone (see `trouble_of`): most succeed, some fail a few times,
some as long as there is a bug. Which bugs there are is in the file FAILING_RELEASE (see releases.py); until the last
release the worker also writes records that no handler can take, FAILING_SPOILED_PER_S a second.
"""

from __future__ import annotations

import asyncio
import os
import random
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from agents import customer_orders, inventory, notifications, orders, payments, sagas
from engine.declare.agent import Agent
from engine.declare.envelope import Envelope
from engine.declare.errors import NotRetryable
from engine.declare.handlers import Handler
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.worker import run_in_loop, serve
from engine.log.ports import Record
from engine.observe.logs import configure_logging
from streams.app import create_app
from streams.settings import load_settings
from tests.chaos.releases import BUGS, Releases
from tests.chaos.spoiler import Spoiler

FOR_GOOD = 1_000_000
FAILING: Sequence[Agent[Any]] = (
    orders.commands,
    customer_orders.projection,
    notifications.commands,
    inventory.commands,
    payments.commands,
    sagas.replies,
)


class Bug(Exception):
    """A handler failed, as handlers do."""


class Unmendable(NotRetryable):
    """A handler failed in a way that trying again does not help."""


class Outrage(BaseException):
    """A handler raised what only the interpreter should."""


class Trouble(NamedTuple):
    """How often a record fails and with what; one that fails for good does so while there is its bug."""

    error: type[BaseException]
    times: int
    bug: int

    def strikes(self, retry_count: int, releases: Releases) -> bool:
        """Whether it does so now."""
        return retry_count < self.times and (self.times < FOR_GOOD or releases.has(self.bug))


FEW_KEYS = ("decide-stock",)
"""Everybody waits for their aggregates, so of these a tenth only fails for good: people could not keep up with more."""
# Per thousand, in the order of the dice.
TROUBLES: tuple[tuple[int, type[BaseException], int], ...] = (
    (60, Bug, 1),
    (40, Bug, 2),
    (40, Bug, FOR_GOOD),
    (20, Unmendable, FOR_GOOD),
    (5, SystemExit, 1),
    (5, KeyboardInterrupt, 2),
    (5, asyncio.CancelledError, 1),
    (5, GeneratorExit, 2),
    (10, Outrage, FOR_GOOD),
)


def trouble_of(agent: str, event_id: str) -> Trouble | None:
    """What the handler of an agent meets with a record, the same in every process; None where all is well."""
    dice = random.Random(zlib.crc32(f"{agent} {event_id}".encode()))
    rolled = dice.randrange(1000)
    for share, error, times in TROUBLES:
        if rolled < share and times == FOR_GOOD and agent in FEW_KEYS and dice.randrange(10):
            return None
        if rolled < share:
            return Trouble(error, times, dice.randrange(BUGS))
        rolled -= share
    return None


def fail_at_random(agent: Agent[Any], releases: Releases, handled: Callable[[Record], None] | None) -> None:
    """Let the handlers of an agent do all of their work, and then fail where trouble is."""

    def failing(handler: Handler) -> Handler:
        def handle(envelope: Envelope[Any], work: UnitOfWork) -> None:
            handler(envelope, work)
            trouble = trouble_of(agent.name, envelope.event_id)
            if trouble is not None and trouble.strikes(work.retry_count, releases):
                raise trouble.error(f"{agent.name} has bug {trouble.bug}")
            if handled is not None:
                handled(work.record)

        return handle

    for payload, handler in agent.handlers.items():
        agent.handlers[payload] = failing(handler)


def main() -> None:
    """Run the worker until it is killed or told to stop."""
    settings = load_settings()
    configure_logging(settings)
    releases = Releases(Path(os.environ["FAILING_RELEASE"]))
    spoiler = Spoiler(float(os.environ["FAILING_SPOILED_PER_S"]), lambda: not releases.is_sound)
    for agent in FAILING:
        fail_at_random(agent, releases, spoiler.note if agent is orders.commands else None)

    async def live() -> int:
        app = create_app(settings)
        return await serve(app, once_ready=lambda: spoiler.spoil(app))

    raise SystemExit(run_in_loop(live()))


if __name__ == "__main__":
    main()
