"""Calls to the outside: side by side, in order per key, before the unit of work, and none is lost."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from engine.calls.circuit import OUTCOMES_MIN, Circuit, CircuitState
from engine.calls.partition_calls import PartitionCalls
from engine.declare.envelope import Envelope, Message, Metadata, encode_envelope, new_envelope
from engine.declare.errors import Unavailable
from engine.declare.service import Service
from engine.declare.settings import Settings
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.app import EngineApp
from engine.web.routes import health
from engine.web.routes import topics as topic_views
from tests.apps import (
    KAFKA,
    TRANSPORTS,
    Seen,
    at_rest,
    broker_url,
    caught_up,
    crash,
    dead_letters,
    make_settings,
    publish,
    publish_keyed,
    row,
    running,
    start,
    stop,
    unique,
    wait_until,
)
from tests.integration.web import client_of, find
from tests.unit.test_circuit import HandTimers
from tests.unit.test_envelope import TEN_O_CLOCK


class Ask(Message, frozen=True, gc=False):
    """Asks the outside for `word`."""

    event_type: ClassVar[str] = "test.ask"
    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "Test"

    word: str


class Refused(Exception):
    """The outside says no, for good."""


class Outside:
    """What is called: notes every call, and answers when the test lets it."""

    def __init__(self) -> None:
        self.opened = 0  # or tried to be
        self.fails_to_open = 0  # how many times at first
        self.calls: list[tuple[str, str]] = []
        self.open = 0
        self.most_open = 0
        self.away = False
        self.broken = False
        self.refused: set[str] = set()
        self.held: set[str] = set()
        self.changed = asyncio.Event()

    async def ask(self, key: str, word: str) -> str:
        """Answer in capitals."""
        self.calls.append((key, word))
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await asyncio.sleep(0)
            while word in self.held:
                await self.changed.wait()
            if self.away:
                raise Unavailable("away")
            if self.broken:
                raise RuntimeError("nobody expected this")
            if word in self.refused:
                raise Refused(word)
        finally:
            self.open -= 1
        return word.upper()

    def let_go(self, *words: str) -> None:
        """Answer calls for these words, and later ones."""
        self.held -= set(words)
        self.changed.set()
        self.changed = asyncio.Event()


def ask(key: str, word: str) -> str:
    """A record that asks for a word."""
    about: dict[str, Any] = {"event_id": f"{key}-{word}", "aggregate_id": key}
    return encode_envelope(
        new_envelope(Ask(word), timestamp=TEN_O_CLOCK, metadata=Metadata(), **about)
    ).decode()  # fmt: skip


class Asking:
    """A service that asks the outside about each record and stores the answers of each key."""

    def __init__(self) -> None:
        name = unique("asking")
        self.source = Topic(f"{name}-in", "what to ask", strict=True)
        self.table: Table[str, Seen] = Table(f"{name}-answers", Seen)
        self.others: Table[str, Seen] = Table(f"{name}-others", Seen)
        self.outside = Outside()
        self.service = Service(name, tables=(self.table, self.others), types=(Ask,))
        self.agent = f"{name}-ask"
        self.other_agent = f"{name}-other"
        self.asking = self.service.agent(
            self.agent, self.source, help="Ask about each record.", opens=self.open_outside
        )
        self.asking.on(Ask)(self._store)
        self.asking.call(self._prepare)
        self.service.agent(self.other_agent, self.source, help="Need no calls.").on(Ask)(self._store_other)

    @asynccontextmanager
    async def open_outside(self, settings: Settings) -> AsyncIterator[Outside]:
        """Give the outside, once it lets itself be opened."""
        self.outside.opened += 1
        if self.outside.opened <= self.outside.fails_to_open:
            raise OSError("no such thing yet")
        yield self.outside

    def _prepare(self, outside: Outside, message: Envelope[Ask], work: UnitOfWork) -> Coroutine[Any, Any, str] | None:
        known = work.get(self.table, message.aggregate_id) or Seen()
        word = message.payload.word
        return None if word.upper() in known.values else outside.ask(message.aggregate_id, word)

    def _store(self, message: Envelope[Ask], work: UnitOfWork) -> None:
        known = work.get(self.table, message.aggregate_id) or Seen()
        work.put(self.table, message.aggregate_id, Seen((*known.values, work.outcome or "known")))

    def _store_other(self, message: Envelope[Ask], work: UnitOfWork) -> None:
        known = work.get(self.others, message.aggregate_id) or Seen()
        work.put(self.others, message.aggregate_id, Seen((*known.values, message.payload.word)))

    async def send(self, app: EngineApp, key: str, *words: str) -> None:
        """Write a record for each word under `key`, with one request."""
        await self.send_keyed(app, *((key, word) for word in words))

    async def send_keyed(self, app: EngineApp, *keyed: tuple[str, str]) -> None:
        """Write a record for each (key, word), with one request, all into the partition of the first key."""
        await publish_keyed(app, self.source, *((key, ask(key, word)) for key, word in keyed))

    def answers(self, app: EngineApp, key: str) -> tuple[str, ...]:
        """The committed answers of a key."""
        return (row(app, self.table, key) or Seen()).values


@pytest.fixture(params=TRANSPORTS)
def broker(request: pytest.FixtureRequest) -> str:
    return broker_url(request)


@pytest.fixture(params=["embedded", KAFKA])
def durable(request: pytest.FixtureRequest) -> str:
    return broker_url(request)


def by_hand(app: EngineApp, agent: str) -> tuple[Circuit, HandTimers]:
    """Give an agent, before its first call, a circuit whose pauses end when the test says so."""
    timers = HandTimers()
    circuit = app.engine.circuits[agent] = Circuit(agent, 1.0, 30.0, timers.call_later, timers.clock)
    return circuit, timers


def keys_of(app: EngineApp, number: int, count: int) -> list[str]:
    """Return so many keys of one partition."""
    return [key for key in map("k{}".format, range(500)) if app.engine.partition_for(key.encode()) == number][:count]


async def figures(client: httpx.AsyncClient, agent: str) -> dict[str, float]:
    """Return what /metrics says of an agent's calls."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    samples = [sample for family in families for sample in family.samples if sample.labels.get("agent") == agent]
    (is_open,) = (sample.value for sample in samples if sample.name == "circuit_open")
    found = {sample.labels["outcome"]: sample.value for sample in samples if sample.name == "outside_calls_total"}
    return found | {"open": is_open}


async def test_calls_of_different_keys_run_at_the_same_time_even_when_they_come_in_fetches_of_one(
    broker: str, tmp_path: Path
) -> None:
    asking = Asking()
    async with running(make_settings(broker, tmp_path, partitions=4), [asking.service]) as app:
        asking.outside.held = {"a"}
        for number in range(20):
            await asking.send(app, f"k{number}", "a")
        await wait_until(lambda: asking.outside.open == 20, "all calls run")
        asking.outside.let_go("a")
        await caught_up(app)
        assert [asking.answers(app, f"k{number}") for number in range(20)] == [("A",)] * 20


async def test_calls_of_one_key_come_one_after_the_other_and_see_what_the_one_before_left(
    broker: str, tmp_path: Path
) -> None:
    asking = Asking()
    async with running(make_settings(broker, tmp_path), [asking.service]) as app:
        await asking.send(app, "k", "a", "b", "a", "c")
        await caught_up(app)
        assert asking.answers(app, "k") == ("A", "B", "known", "C")
        assert asking.outside.calls == [("k", "a"), ("k", "b"), ("k", "c")]
        assert asking.outside.most_open == 1


async def test_what_is_finished_is_committed_while_a_later_call_hangs(broker: str, tmp_path: Path) -> None:
    asking = Asking()
    async with running(make_settings(broker, tmp_path), [asking.service]) as app:
        together = [f"k{n}" for n in range(100) if app.engine.partition_for(f"k{n}".encode()) == 0]
        first, slow, behind = together[:3]
        asking.outside.held = {"slow"}
        await asking.send(app, first, "a")
        await asking.send(app, slow, "slow")
        await asking.send(app, behind, "b")
        await wait_until(lambda: asking.answers(app, first) == ("A",), "the first answer is committed")
        await wait_until(lambda: (behind, "b") in asking.outside.calls, "the call behind the slow one is made")
        await caught_up(app, asking.other_agent)
        assert asking.answers(app, behind) == ()  # behind the slow one: positions have no holes
        asking.outside.let_go("slow")
        await caught_up(app)
        assert (asking.answers(app, slow), asking.answers(app, behind)) == (("SLOW",), ("B",))


async def test_while_the_other_side_is_away_only_those_wait_who_need_it_and_nothing_is_lost(
    broker: str, tmp_path: Path
) -> None:
    asking = Asking()
    async with running(make_settings(broker, tmp_path), [asking.service]) as app:
        asking.outside.away = True
        for number in range(10):
            await asking.send(app, f"k{number}", "a", "b")
        await caught_up(app, asking.other_agent)
        assert {row(app, asking.others, f"k{number}") for number in range(10)} == {Seen(("a", "b"))}
        await wait_until(lambda: len(asking.outside.calls) > 20, "calls are made again")
        assert all(asking.answers(app, f"k{number}") == () for number in range(10))
        asking.outside.away = False
        await caught_up(app)
        assert [asking.answers(app, f"k{number}") for number in range(10)] == [("A", "B")] * 10
        assert await dead_letters(app, asking.source) == []


async def test_a_call_that_fails_for_good_makes_a_dead_letter_of_its_record_alone(broker: str, tmp_path: Path) -> None:
    asking = Asking()
    async with running(make_settings(broker, tmp_path, retry_count=1), [asking.service]) as app:
        asking.outside.refused = {"bad"}
        await asking.send(app, "k", "a")
        await publish(app, asking.source, "k", b"no json")
        await asking.send(app, "k", "b", "bad", "c")
        await at_rest(app)
        assert asking.answers(app, "k") == ("A", "B")
        assert asking.outside.calls.count(("k", "bad")) == 2
        assert asking.outside.calls.count(("k", "c")) == 0
        letters = [dict(record.headers) for record in await dead_letters(app, asking.source)]
        errors = Counter(letter["error_type"] for letter in letters if letter["agent"] == asking.agent.encode())
        assert errors == {b"Refused": 1, b"UndecodableRecord": 1}


async def test_no_more_calls_run_at_once_than_allowed(tmp_path: Path) -> None:
    asking = Asking()
    settings = make_settings("memory://", tmp_path, partitions=1, outside_calls_max=3)
    async with running(settings, [asking.service]) as app:
        for number in range(50):
            await asking.send(app, f"k{number}", "a")
        await caught_up(app)
        assert asking.outside.most_open == 3
        assert [asking.answers(app, f"k{number}") for number in range(50)] == [("A",)] * 50


async def test_calls_that_had_not_ended_are_made_again_after_a_crash(durable: str, tmp_path: Path) -> None:
    asking = Asking()
    settings = make_settings(durable, tmp_path)
    app = await start(settings, [asking.service])
    asking.outside.held = {"b"}
    await asking.send(app, "k", "a", "b", "c")
    await wait_until(lambda: asking.answers(app, "k") == ("A",), "the first answer is committed")
    await crash(app)
    asking.outside.let_go("b")
    async with running(settings, [asking.service]) as app:
        await caught_up(app)
        assert asking.answers(app, "k") == ("A", "B", "C")
        assert Counter(asking.outside.calls) == {("k", "a"): 1, ("k", "b"): 2, ("k", "c"): 1}


async def test_a_partition_that_waits_keeps_no_other_partition_waiting(broker: str, tmp_path: Path) -> None:
    asking = Asking()
    async with running(make_settings(broker, tmp_path, outside_calls_max=1), [asking.service]) as app:
        here, there = ([f"k{n}" for n in range(200) if app.engine.partition_for(f"k{n}".encode()) == p] for p in (0, 1))
        asking.outside.held = {"slow"}
        for key in here[:10]:  # far more than the window of a partition takes, most of them in fetches of their own
            await asking.send(app, key, "slow")
            await asyncio.sleep(0.01)
        await wait_until(lambda: asking.outside.open == 1, "the first call hangs")
        for key in there[:10]:
            await asking.send(app, key, "a")
        await wait_until(
            lambda: all(asking.answers(app, key) == ("A",) for key in there[:10]), "the other partition has gone on"
        )
        assert asking.answers(app, here[0]) == ()
        asking.outside.let_go("slow")
        await caught_up(app)
        assert [asking.answers(app, key) for key in here[:10]] == [("SLOW",)] * 10


async def test_an_agent_that_cannot_begin_is_tried_again_and_holds_up_nobody(tmp_path: Path) -> None:
    asking = Asking()
    asking.outside.fails_to_open = 2
    async with running(make_settings("memory://", tmp_path, restart_backoff_max=0.02), [asking.service]) as app:
        await asking.send(app, "k", "a")
        await caught_up(app)
        assert (asking.outside.opened, asking.answers(app, "k")) == (3, ("A",))
        assert row(app, asking.others, "k") == Seen(("a",))


async def test_an_error_of_a_fetch_costs_its_partition_a_life_and_the_agent_neither_client_nor_record(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asking, process, failures = Asking(), PartitionCalls.process, iter([RuntimeError("nobody expected this")])

    async def fail_once(calls: PartitionCalls, *of_fetch: Any) -> None:
        for failure in failures:
            raise failure
        await process(calls, *of_fetch)

    monkeypatch.setattr(PartitionCalls, "process", fail_once)
    async with running(make_settings(broker, tmp_path), [asking.service]) as app:
        number = app.engine.partition_for(b"k")
        first_life = app.engine.tasks[number]
        await asking.send(app, "k", "a", "b")
        await caught_up(app)
        assert app.engine.tasks[number] is not first_life
        assert (asking.answers(app, "k"), row(app, asking.others, "k")) == (("A", "B"), Seen(("a", "b")))
        assert asking.outside.opened == 1


async def test_an_idle_partition_shows_no_lag_after_its_calls(broker: str, tmp_path: Path) -> None:
    asking = Asking()
    async with running(make_settings(broker, tmp_path), [asking.service]) as app:
        await asking.send(app, "k", "a")
        await caught_up(app)  # to the end, transaction markers included
        assert all(not app.engine.task(number).backlog.oldest_ms for number in range(app.engine.settings.partitions))


# ---- the circuit


async def test_during_an_outage_calls_pause_visibly_are_probed_and_go_on_in_order(
    broker: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    asking = Asking()
    agent, outside, services = asking.agent, asking.outside, [asking.service, health.service, topic_views.service]
    keys = [f"k{number}" for number in range(40)]
    async with running(make_settings(broker, tmp_path), services) as app, client_of(app) as client:
        caplog.set_level(logging.INFO, "engine.calls.circuit")
        _, timers = by_hand(app, agent)
        await asking.send(app, "first", "a")
        await wait_until(lambda: asking.answers(app, "first") == ("A",), "the first answer is there")
        assert (await find(client, "/readyz"))["paused"] == []
        assert await figures(client, agent) == {"ok": 1.0, "failed": 0.0, "open": 0.0}

        outside.away = True
        for key in keys[:10]:
            await asking.send(app, key, "a", "b")
        await wait_until(lambda: timers.is_pausing and not outside.open, "the circuit opens")
        made = len(outside.calls)
        assert made <= 1 + OUTCOMES_MIN + 10  # calls that were under way already
        for key in keys[10:]:
            await asking.send(app, key, "a", "b")
        await caught_up(app, asking.other_agent)
        assert row(app, asking.others, keys[-1]) == Seen(("a", "b"))
        assert len(outside.calls) == made

        (paused,) = (await find(client, "/readyz"))["paused"]
        assert (paused["agent"], paused["state"], paused["reason"]) == (agent, "open", "away")
        assert datetime.fromisoformat(paused["since"]) < datetime.fromisoformat(paused["next_probe_at"])
        assert await figures(client, agent) == {"ok": 1.0, "failed": made - 1.0, "open": 1.0}
        (check,) = [check for check in await find(client, "/doctor") if check["check"] == "outside calls"]
        assert not check["ok"]
        assert agent in check["detail"]
        assert check["advice"]

        for probe in (1, 2, 3):
            timers.end_pause()
            await wait_until(lambda: timers.is_pausing, "the probe has failed")
            assert len(outside.calls) == made + probe

        outside.away = False
        timers.end_pause()
        await caught_up(app)
        assert [asking.answers(app, key) for key in keys] == [("A", "B")] * 40
        assert await dead_letters(app, asking.source) == []
        assert (await find(client, "/readyz"))["paused"] == []
        assert await figures(client, agent) == {"ok": 81.0, "failed": made + 2.0, "open": 0.0}
        ours = [record for record in caplog.records if record.name == "engine.calls.circuit"]
        said = [(record.levelno, record.getMessage().split(",")[0]) for record in ours]
        assert said == [
            (logging.WARNING, f"calls of {agent} are paused"),
            (logging.INFO, f"calls of {agent} go on after a pause of {sum(timers.pauses):.1f} s"),
        ]


async def test_failures_in_one_partition_pause_the_calls_of_all(broker: str, tmp_path: Path) -> None:
    asking = Asking()
    async with running(make_settings(broker, tmp_path), [asking.service]) as app:
        _, timers = by_hand(app, asking.agent)
        here, there = keys_of(app, 0, OUTCOMES_MIN), keys_of(app, 1, 10)
        asking.outside.away = True
        for key in here:
            await asking.send(app, key, "a")
        await wait_until(lambda: timers.is_pausing and not asking.outside.open, "the circuit opens")
        made = len(asking.outside.calls)
        for key in there:
            await asking.send(app, key, "a")
        await caught_up(app, asking.other_agent)
        assert len(asking.outside.calls) == made
        asking.outside.away = False
        timers.end_pause()
        await caught_up(app)
        assert [asking.answers(app, key) for key in here + there] == [("A",)] * (len(here) + len(there))


async def test_an_open_circuit_holds_further_fetches_of_its_topic_and_no_other(tmp_path: Path) -> None:
    asking, other = Asking(), Asking()
    settings = make_settings("memory://", tmp_path, partitions=1, outside_calls_max=5)
    async with running(settings, [asking.service, other.service]) as app:
        circuit, timers = by_hand(app, asking.agent)
        asking.outside.away = True
        count = 0
        while app.engine.tasks[0].backlog.held[asking.source.name] < 2 * 2:  # two fetches for each of the two agents
            await asking.send(app, f"k{count}", "a")
            count += 1
            await asyncio.sleep(0)
        await wait_until(lambda: timers.is_pausing, "the circuit opens")
        assert app.engine.task_for(asking.source.name, 0) is None
        await other.send(app, "k", "a")
        await caught_up(app, other.agent)
        assert (circuit.state, other.answers(app, "k")) == (CircuitState.OPEN, ("A",))
        asking.outside.away = False
        timers.end_pause()
        await caught_up(app)
        assert [asking.answers(app, f"k{number}") for number in range(count)] == [("A",)] * count


async def test_errors_that_nobody_expected_make_no_storm_of_dead_letters(broker: str, tmp_path: Path) -> None:
    asking = Asking()
    keys = [f"k{number}" for number in range(50)]
    async with running(make_settings(broker, tmp_path, retry_count=0), [asking.service]) as app:
        _, timers = by_hand(app, asking.agent)
        asking.outside.broken = True
        for key in keys:
            await asking.send(app, key, "a")
        await wait_until(lambda: timers.is_pausing and not asking.outside.open, "the circuit opens")
        timers.end_pause()
        await wait_until(lambda: timers.is_pausing, "the probe has failed")
        asking.outside.broken = False
        timers.end_pause()
        await caught_up(app)
        letters = await dead_letters(app, asking.source)
        assert len(letters) == OUTCOMES_MIN  # those before it opened, one less than it takes, and the probe
        assert Counter(asking.answers(app, key) for key in keys) == {("A",): 50 - len(letters), (): len(letters)}


@pytest.mark.parametrize("end", [crash, stop])
async def test_a_restart_while_calls_are_paused_loses_nothing(
    durable: str, tmp_path: Path, end: Callable[[EngineApp], Awaitable[None]]
) -> None:
    asking = Asking()
    settings = make_settings(durable, tmp_path)
    app = await start(settings, [asking.service])
    asking.outside.away = True
    keys = [f"k{number}" for number in range(10)]
    for key in keys:
        await asking.send(app, key, "a", "b")
    await wait_until(app.engine.pauses, "the calls are paused")
    await end(app)
    async with running(settings, [asking.service]) as app:
        await wait_until(app.engine.pauses, "the calls are paused again")
        assert [asking.answers(app, key) for key in keys] == [()] * 10
        asking.outside.away = False
        await caught_up(app)
        assert [asking.answers(app, key) for key in keys] == [("A", "B")] * 10
        assert await dead_letters(app, asking.source) == []


async def test_a_partition_that_is_lost_while_it_probes_leaves_the_probe_to_another(tmp_path: Path) -> None:
    asking = Asking()
    async with running(make_settings("memory://", tmp_path), [asking.service]) as app:
        circuit, timers = by_hand(app, asking.agent)
        here, there = keys_of(app, 0, OUTCOMES_MIN), keys_of(app, 1, 1)
        asking.outside.away = True
        for key in here:
            await asking.send(app, key, "a")
        await wait_until(lambda: timers.is_pausing and not asking.outside.open, "the circuit opens")
        asking.outside.held = {"a"}
        timers.end_pause()
        await wait_until(lambda: asking.outside.open, "the probe hangs")
        await asking.send(app, *there, "b")
        await caught_up(app, asking.other_agent)
        asking.outside.away = False
        app.engine.tasks[0].life.fail(RuntimeError("lost"))
        await wait_until(lambda: asking.answers(app, *there) == ("B",), "the other partition has probed")
        assert circuit.state is CircuitState.CLOSED
        asking.outside.let_go("a")
        await caught_up(app)
        assert [asking.answers(app, key) for key in here] == [("A",)] * len(here)


async def test_a_call_that_hangs_is_cut_off_and_made_again(broker: str, tmp_path: Path) -> None:
    asking = Asking()
    async with running(make_settings(broker, tmp_path, call_timeout=0.05), [asking.service]) as app:
        circuit, timers = by_hand(app, asking.agent)
        asking.outside.held = {"slow"}
        await asking.send(app, "k", "slow", "a")
        await wait_until(lambda: timers.is_pausing, "it has been cut off often enough")
        assert Counter(asking.outside.calls) == {("k", "slow"): OUTCOMES_MIN}
        (pause,) = app.engine.pauses()
        assert pause.reason == "a call did not answer within 0.05 s"
        asking.outside.let_go("slow")
        timers.end_pause()
        await caught_up(app)
        assert asking.answers(app, "k") == ("SLOW", "A")
        assert (circuit.answered, circuit.failures) == (2, OUTCOMES_MIN)


async def test_nothing_is_paused_where_nothing_waits(tmp_path: Path) -> None:
    asking = Asking()
    async with running(make_settings("memory://", tmp_path, retry_count=0), [asking.service]) as app:
        circuit, timers = by_hand(app, asking.agent)
        asking.outside.broken = True
        for key in keys_of(app, 0, OUTCOMES_MIN + 1):
            await asking.send(app, key, "a")
        await wait_until(lambda: timers.is_pausing and not asking.outside.open, "the circuit opens")
        assert [pause.agent for pause in app.engine.pauses()] == [asking.agent]
        for _ in range(2):  # as many records are left, and each probe makes a dead letter of one
            timers.end_pause()
            await wait_until(lambda: timers.is_pausing, "the probe has failed")
        await caught_up(app)
        assert (circuit.state, app.engine.pauses()) == (CircuitState.OPEN, [])
