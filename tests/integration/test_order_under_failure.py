"""Whatever fails, crashes or moves: each aggregate sees its records once, in order, and only discarded ones lack.

More of them on the embedded log with ORDERS_FAILURE_EXAMPLES=500, as the long fault run has it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, given, note
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.declare.unit_of_work import UnitOfWork
from engine.failures import service as service_of_letters
from engine.faust.app import EngineApp
from engine.log.ports import Record
from tests.apps import HandlerFailed, Tally, at_rest, crash, make_settings, publish, start, stop, wait_until
from tests.letters import closed_letters, discard, open_letters, retry, waiting

KEYS = ("k0", "k1", "k2")
RETRIES = 2
FOR_EVER = 100
EXAMPLES = int(os.environ.get("ORDERS_FAILURE_EXAMPLES", "20"))


class Send(NamedTuple):
    """A record of a key, whose handler fails that often, and some of the same key that do not fail."""

    key: str
    failures: int
    others: int


class Crash(NamedTuple):
    """The process dies and starts again."""


class Rebalance(NamedTuple):
    """The group rebalances after a moment and leaves the partitions here, or has given them away meanwhile."""

    went_away: bool
    after_ms: int


class Decide(NamedTuple):
    """Somebody retries or discards the open letter of this rank, having mended what was wrong with it, or not."""

    rank: int
    discards: bool
    mended: bool


class Rest(NamedTuple):
    """Nothing happens until all is done that can be."""


Step = Send | Crash | Rebalance | Decide | Rest

SENDS = st.builds(
    Send, st.sampled_from(KEYS), st.sampled_from((0, 0, 1, 2, RETRIES + 1, FOR_EVER)), st.sampled_from((0, 0, 1, 4))
)
STEPS = st.lists(
    st.one_of(
        SENDS,
        SENDS,
        SENDS,
        st.builds(Decide, st.integers(0, 3), st.booleans(), st.booleans()),
        st.builds(Decide, st.integers(0, 3), st.booleans(), st.booleans()),
        st.builds(Rebalance, st.booleans(), st.sampled_from((0, 1, 3, 6))),
        st.builds(Crash),
        st.builds(Rest),
    ),
    min_size=10,
    max_size=60,
)


class Failing(Tally):
    """A tally whose handler fails for a value as often as it is told, over all lives of the process."""

    def __init__(self, lingers: bool) -> None:
        super().__init__("failing", "failing")
        self.failures: dict[bytes, int] = {}
        self.service.agents["failing"].deferred = lingers
        self.services = [self.service, service_of_letters.service]

    def handle(self, record: Record, work: UnitOfWork) -> str:
        """Do all of the work, and fail."""
        result = super().handle(record, work)
        value = record.value or b""
        if self.failures.get(value, 0) > 0:
            self.failures[value] -= 1
            raise HandlerFailed(value.decode())
        return result


class Run:
    """One run of steps against a real application."""

    def __init__(self, broker: str, folder: Path, lingers: bool) -> None:
        # Few may wait, so that topics stand still now and then.
        self.settings = make_settings(
            broker, folder, retry_count=RETRIES, retry_backoff=0.002, waiting_per_aggregate_max=3
        )
        self.failing = Failing(lingers)
        self.sent: dict[str, list[str]] = {key: [] for key in KEYS}
        self.app: EngineApp | None = None

    async def go(self, steps: Sequence[Step]) -> None:
        """Take all steps, then let everything that is left be mended and retried, and compare."""
        self.app = await start(self.settings, self.failing.services)
        try:
            for step in steps:
                await self._take(step)
            self.failing.failures.clear()
            while not await self._settled() or open_letters(self._app):
                await retry(self._app, *open_letters(self._app))
            await self._check()
        finally:
            await stop(self._app)

    @property
    def _app(self) -> EngineApp:
        assert self.app is not None
        return self.app

    async def _take(self, step: Step) -> None:
        match step:
            case Send(key, failures, others):
                for fails in (failures, *[0] * others):
                    await self._send(key, fails)
            case Crash():
                await crash(self._app)
                self.app = await start(self.settings, self.failing.services)
            case Rebalance(went_away, after_ms):
                await asyncio.sleep(after_ms / 1000)
                await self._rebalance(went_away)
            case Decide(rank, discards, mended):
                await self._decide(rank, discards, mended)
            case Rest():
                await self._settled()

    async def _send(self, key: str, failures: int) -> None:
        value = f"{key}-{len(self.sent[key])}"
        self.sent[key].append(value)
        self.failing.failures[value.encode()] = failures
        await publish(self._app, self.failing.source, key, value.encode())

    async def _rebalance(self, went_away: bool) -> None:
        engine = self._app.engine
        await engine.revoked()
        await engine.assigned(engine.numbers, engine._generation + (2 if went_away else 1))
        await wait_until(engine.is_ready, "the partitions are here again")

    async def _decide(self, rank: int, discards: bool, mended: bool) -> None:
        letters = open_letters(self._app)
        if not letters:
            return
        letter_id, letter = list(letters.items())[rank % len(letters)]
        if mended:
            self.failing.failures[letter.value or b""] = 0
        await (discard(self._app, letter_id) if discards else retry(self._app, letter_id))

    async def _settled(self) -> bool:
        """Wait until all is done that can be; whether no topic stands still behind a dead letter."""
        engine = self._app.engine

        def stands_still() -> bool:
            return any(task.stalled.sources() for task in engine.tasks.values())

        resting = asyncio.ensure_future(at_rest(self._app))
        while not resting.done() and not (stands_still() and open_letters(self._app)):
            await asyncio.wait([resting], timeout=0.005)
        at_end = resting.done()
        resting.cancel()
        await asyncio.wait([resting])
        return at_end

    async def _check(self) -> None:
        closed = closed_letters(self._app).values()
        discarded = {(letter.value or b"").decode() for letter in closed if letter.state == "discarded"}
        expected = {
            key: [value for value in values if value not in discarded] for key, values in self.sent.items() if values
        }
        note(f"discarded: {sorted(discarded)}")
        assert waiting(self._app) == {}
        await self.failing.check(self._app, {key: values for key, values in expected.items() if values})


def run(broker: str, lingers: bool, steps: Sequence[Step]) -> None:
    """Run steps on an application of its own."""
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(Run(broker, Path(folder), lingers).go(steps))


@pytest.mark.slow
@given(steps=STEPS, lingers=st.booleans())
@hypothesis_settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
def test_effects_are_those_without_failures_on_the_embedded_log(steps: Sequence[Step], lingers: bool) -> None:
    run("embedded://", lingers, steps)


@pytest.mark.slow
@pytest.mark.kafka
def test_effects_are_those_without_failures_on_kafka(request: pytest.FixtureRequest) -> None:
    broker = f"kafka://{request.getfixturevalue('kafka_broker').bootstrap}"

    # Not shrunk: an application on Kafka needs seconds, and a fault that has to do with it is seldom the same again.
    @given(steps=STEPS, lingers=st.booleans())
    @hypothesis_settings(
        max_examples=4,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        database=None,
        phases=[Phase.generate],
    )
    def check(steps: Sequence[Step], lingers: bool) -> None:
        run(broker, lingers, steps)

    check()
