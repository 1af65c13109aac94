"""Random records, limits, calls and decisions end with everything handled in order, or visibly waiting for a person.

More of them with ORDERS_STANDSTILL_EXAMPLES=500, as the long fault run has it.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import msgspec
import pytest
from hypothesis import HealthCheck, Phase, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from engine.declare.envelope import Envelope
from engine.declare.errors import Unavailable
from engine.declare.unit_of_work import UnitOfWork
from engine.failures import service as managing
from engine.failures.dead_letters import CLOSED_DEAD_LETTERS, DEAD_LETTERS, DISCARDED, OPEN, DeadLetter
from engine.failures.topics import DEAD_LETTER_COMMANDS
from engine.faust.app import EngineApp
from engine.health.standstill import without_room
from streams.settings import Settings
from tests.apps import Seen, make_settings, publish, row, running, wait_until
from tests.integration.test_engine_outside import Ask, Asking, Outside, Refused, ask
from tests.integration.test_engine_standstill import decide_wrongly
from tests.letters import discard, open_letters, retry

EXAMPLES = int(os.environ.get("ORDERS_STANDSTILL_EXAMPLES", "20"))
KEYS = ("a", "b", "c")
ROUNDS_MAX = 100

FAILS_ONCE, FAILS, HANGS, IS_AWAY, UNKNOWN = "once", "always", "hangs", "away", "unknown"


class Publish(NamedTuple):
    """Write a record under a key; `kind` says what becomes of it."""

    key: str
    kind: str


class Decide(NamedTuple):
    """Decide about one of the open letters, if there is any."""

    verb: str
    which: int


class Limits(NamedTuple):
    """Limits of an application."""

    per_aggregate: int
    total: int
    calls: int
    retries: int


Step = Publish | Decide
KINDS = ("ok", "ok", FAILS_ONCE, FAILS, FAILS, HANGS, IS_AWAY, UNKNOWN)
VERBS = ("retry", "discard", "edit", "unreadable")
STEPS = st.lists(
    st.one_of(
        st.builds(Publish, st.sampled_from(KEYS), st.sampled_from(KINDS)),
        st.builds(Publish, st.sampled_from(KEYS), st.sampled_from(KINDS)),
        st.builds(Decide, st.sampled_from(VERBS), st.integers(0, 9)),
    ),
    min_size=4,
    max_size=30,
)
LIMITS = st.builds(Limits, st.integers(1, 4), st.integers(1, 8), st.integers(1, 3), st.integers(0, 1))


class Moody(Outside):
    """Answers as the word says, until everything is mended."""

    def __init__(self) -> None:
        super().__init__()
        self.is_mended = False
        self.tries: Counter[str] = Counter()

    def fails(self, word: str) -> bool:
        """Whether a handler or a call fails with this word now."""
        kind, _, _ = word.partition("-")
        self.tries[word] += 1
        return not self.is_mended and (kind == FAILS or (kind == FAILS_ONCE and self.tries[word] == 1))

    async def ask(self, key: str, word: str) -> str:
        kind, _, _ = word.partition("-")
        self.calls.append((key, word))
        tries = sum(called == word for _, called in self.calls)
        await asyncio.sleep(0)
        if kind == HANGS and tries == 1:
            await asyncio.Event().wait()
        if kind == IS_AWAY and tries <= 2:
            raise Unavailable(word)
        if self.fails(word):
            raise Refused(word)
        return word.upper()


class Shop(Asking):
    """One agent that calls the outside, and one that does not, with the same records."""

    def __init__(self) -> None:
        super().__init__()
        self.outside: Moody = Moody()
        self.tried = Moody()

    def _store_other(self, message: Envelope[Ask], work: UnitOfWork) -> None:
        if self.tried.fails(message.payload.word):
            raise Refused(message.payload.word)
        super()._store_other(message, work)


def mend(shop: Shop) -> None:
    """Let nothing fail any more but what nobody can read."""
    shop.outside.is_mended = shop.tried.is_mended = True


class Run:
    """One application, from its first record to its last decision."""

    def __init__(self, settings: Settings) -> None:
        self.shop = Shop()
        self.settings = settings
        self.words: list[tuple[str, str]] = []  # by offset: key and word
        self.edits = 0

    async def go(self, steps: Sequence[Step]) -> None:
        """Carry out the steps, look whether everything that is not handled shows, and decide about all of it."""
        async with running(self.settings, [self.shop.service, managing.service]) as app:
            for step in steps:
                if isinstance(step, Publish):
                    await self._publish(app, step)
                else:
                    await self._decide(app, step)
            await wait_until(lambda: is_quiet(app), "everything is handled, or shows what it waits for", 10.0)
            check_visible(app)
            mend(self.shop)
            rounds = 0
            while open_letters(app):
                assert rounds < ROUNDS_MAX
                for which, letter in enumerate(open_letters(app).values()):
                    is_last = rounds > 0 or letter.topic == DEAD_LETTER_COMMANDS.name
                    await self._decide(app, Decide("discard" if is_last else VERBS[which % 3], which))
                await wait_until(lambda: is_quiet(app), "the decisions are carried out", 10.0)
                rounds += 1
            assert (len(app.engine.task(0).lanes.index), without_room(app.engine.task(0))) == (0, [])
            await wait_until(lambda: not behind(app), "everything is handled")
            self._check_order(app)

    async def _publish(self, app: EngineApp, step: Publish) -> None:
        word = f"{step.kind}-{len(self.words)}"
        self.words.append((step.key, word))
        value = ask(step.key, word)
        if step.kind == UNKNOWN:
            value = value.replace('"version":1', '"version":9')
        await publish(app, self.shop.source, step.key, value.encode())

    async def _decide(self, app: EngineApp, step: Decide) -> None:
        letters = list(open_letters(app).items())
        if not letters:
            await asyncio.sleep(0.005)
            return
        letter_id, letter = letters[step.which % len(letters)]
        if step.verb == "unreadable":
            await decide_wrongly(app, 0, letter_id, 1)
        elif step.verb == "discard":
            await discard(app, letter_id)
        elif step.verb == "edit" and letter.topic == self.shop.source.name:
            self.edits += 1
            key = (letter.key or b"").decode()
            await retry(app, letter_id, value=ask(key, f"edited-{self.edits}"))
        else:
            await retry(app, letter_id)

    def _check_order(self, app: EngineApp) -> None:
        """What took effect under each key: every record once and in order, as edited, without those given up."""
        task = app.engine.task(0)
        assert next(task.scan(DEAD_LETTERS), None) is None
        letters: dict[tuple[str, int], DeadLetter] = {
            (letter.agent, letter.offset): letter for _, letter in task.scan(CLOSED_DEAD_LETTERS)
        }
        shop = self.shop
        for agent, table in ((shop.agent, shop.table), (shop.other_agent, shop.others)):
            expected: defaultdict[str, list[str]] = defaultdict(list)
            for offset, (key, word) in enumerate(self.words):
                letter = letters.get((agent, offset))
                if letter is None:
                    expected[key].append(word)
                elif letter.state != DISCARDED:
                    expected[key].append(msgspec.json.decode(letter.value or b"")["payload"]["word"])
            for key in KEYS:
                found = (row(app, table, key) or Seen()).values
                assert [word.lower() for word in found] == expected[key], (agent, key)


def behind(app: EngineApp) -> set[tuple[str, str]]:
    """Agents that have not reached the end of their topic."""
    ends = app.engine.broker.log.end_offset  # type: ignore[attr-defined]
    task = app.engine.task(0)
    return {
        (agent, topic.name)
        for agent, topic in app.engine.agents.items()
        if task.reached(agent, topic.name) < ends(topic.name, 0)
    }


def is_quiet(app: EngineApp) -> bool:
    """Whether nothing goes on by itself any more: what is not handled waits in a parked lane, or for room."""
    task = app.engine.task(0)
    if task.work.is_committing or not task.work.is_empty() or behind(app) != set(without_room(task)):
        return False
    lanes = [lane for _, lane in task.lanes.index.items()]
    return all(lane.parked is not None for lane in lanes) and not any(map(task.lanes.has_turns, app.engine.agents))


def check_visible(app: EngineApp) -> None:
    """Whoever stands still does so behind open letters, which a person can see and decide about."""
    task = app.engine.task(0)
    letters = dict(task.scan(DEAD_LETTERS))
    for key, lane in task.lanes.index.items():
        assert lane.parked is not None
        assert (letters[lane.parked].state, letters[lane.parked].agent) == (OPEN, key.agent)
    assert letters or not without_room(task)


@pytest.mark.slow
@given(broker=st.sampled_from(["memory://", "embedded://"]), steps=STEPS, limits=LIMITS)
@hypothesis_settings(
    max_examples=EXAMPLES,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    phases=[
        Phase.reuse,
        Phase.generate,
    ],  # not shrunk: each example that stands still takes as long as it is waited for
)
def test_everything_is_handled_in_order_or_visibly_waits_for_a_person(
    broker: str, steps: Sequence[Step], limits: Limits
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        settings = make_settings(
            broker,
            Path(folder),
            partitions=1,
            waiting_per_aggregate_max=limits.per_aggregate,
            waiting_max=limits.total,
            outside_calls_max=limits.calls,
            retry_count=limits.retries,
            call_timeout=0.05,
        )
        asyncio.run(Run(settings).go(steps))
