"""Projections may linger on a busy partition: nothing is lost or late beyond the interval, and who waits need not."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from engine.declare.agent import Agent
from engine.declare.handlers import RecordHandler
from engine.faust.app import EngineApp
from engine.partition import lingering
from engine.partition.dispatch import Dispatch
from engine.work.fetched import Fetched
from tests.apps import (
    KAFKA,
    TRANSPORTS,
    Seen,
    Tally,
    at_rest,
    broker_url,
    caught_up,
    crash,
    dead_letters,
    make_settings,
    publish,
    row,
    running,
    start,
    wait_until,
)

LONG_S = 5.0


class Pair:
    """Two services on one topic: one handles its records at once, the other when it is quiet."""

    def __init__(self) -> None:
        self.prompt = Tally("prompt", "prompt")
        self.slow = Tally("slow", "slow")
        self.slow.source = self.prompt.source
        self.slow.service.agents["slow"] = Agent("slow", self.prompt.source, deferred=True)
        self.slow.service.agents["slow"].on_record(self.slow.handle)
        self.services = [self.prompt.service, self.slow.service]

    async def send(self, app: EngineApp, key: str, *values: str) -> None:
        """Write values under a key."""
        await publish(app, self.prompt.source, key, *(value.encode() for value in values))

    def seen(self, app: EngineApp, key: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """What both have committed."""
        prompt, slow = row(app, self.prompt.table, key), row(app, self.slow.table, key)
        return (prompt or Seen()).values, (slow or Seen()).values


@pytest.fixture(params=TRANSPORTS)
def broker(request: pytest.FixtureRequest) -> str:
    return broker_url(request)


@pytest.fixture(params=["embedded", KAFKA])
def durable(request: pytest.FixtureRequest) -> str:
    return broker_url(request)


@pytest.fixture
def never_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a moment of quiet be longer than anything here."""
    monkeypatch.setattr(lingering, "QUIET_S", 60.0)


async def test_what_lingers_is_handled_once_and_in_order(broker: str, tmp_path: Path) -> None:
    pair = Pair()
    async with running(make_settings(broker, tmp_path), pair.services) as app:
        for number in range(100):
            await pair.send(app, f"k{number % 7}", str(number))
        await caught_up(app)
        expected = {f"k{key}": [str(number) for number in range(100) if number % 7 == key] for key in range(7)}
        await pair.prompt.check(app, expected)
        await pair.slow.check(app, expected)


async def test_on_a_busy_partition_it_waits_no_longer_than_the_interval(
    broker: str, tmp_path: Path, never_quiet: None
) -> None:
    pair = Pair()
    async with running(make_settings(broker, tmp_path, commit_interval=0.3), pair.services) as app:
        await pair.send(app, "k", "a")
        await wait_until(lambda: pair.seen(app, "k")[0] == ("a",), "the prompt one has committed")
        assert pair.seen(app, "k")[1] == ()
        await wait_until(lambda: pair.seen(app, "k")[1] == ("a",), "the other one has, too")


async def test_who_waits_for_it_does_not_wait_for_quiet(broker: str, tmp_path: Path, never_quiet: None) -> None:
    pair = Pair()
    async with running(make_settings(broker, tmp_path, commit_interval=LONG_S), pair.services) as app:
        for value in ("a", "b"):  # the second time it is waited for before it comes
            number = app.engine.partition_for(b"k")
            task, topic = app.engine.task(number), pair.prompt.source.name
            end = await app.engine.broker.end_offset(topic, number)
            if value == "b":
                waiting = asyncio.create_task(task.waiters.wait("slow", topic, end + 1, LONG_S / 2))
                await asyncio.sleep(0)
                await pair.send(app, "k", value)
            else:
                await pair.send(app, "k", value)
                await wait_until(lambda: "a" in pair.seen(app, "k")[0], "the prompt one has committed")
                waiting = asyncio.create_task(task.waiters.wait("slow", topic, end + 1, LONG_S / 2))
            assert await waiting
            assert value in pair.seen(app, "k")[1]


async def test_what_lingered_comes_again_after_a_crash(durable: str, tmp_path: Path, never_quiet: None) -> None:
    pair = Pair()
    settings = make_settings(durable, tmp_path, commit_interval=LONG_S)
    app = await start(settings, pair.services)
    await pair.send(app, "k", "a")
    await wait_until(lambda: pair.seen(app, "k")[0] == ("a",), "the prompt one has committed")
    await crash(app)
    async with running(settings, pair.services) as app:
        assert pair.seen(app, "k") == (("a",), ())
        await pair.send(app, "k", "b")
        number = app.engine.partition_for(b"k")
        end = await app.engine.broker.end_offset(pair.prompt.source.name, number)
        assert await app.engine.task(number).waiters.wait("slow", pair.prompt.source.name, end, LONG_S / 2)
        assert pair.seen(app, "k")[1] == ("a", "b")


async def test_a_record_that_fails_while_lingering_is_a_dead_letter_alone(tmp_path: Path) -> None:
    pair = Pair()
    pair.slow.poison = {b"bad"}
    async with running(make_settings("memory://", tmp_path), pair.services) as app:
        await pair.send(app, "k", "a", "bad", "b")
        await at_rest(app)
        assert pair.seen(app, "k") == (("a", "bad", "b"), ("a",))
        (letter,) = await dead_letters(app, pair.prompt.source)
        assert (letter.value, dict(letter.headers)["agent"]) == (b"bad", b"slow")


class Alone:
    """A service that is alone on its topic, and deferred; its agent can be held up."""

    def __init__(self, patched: pytest.MonkeyPatch) -> None:
        self.tally = Tally("slow", "slow")
        self.tally.service.agents["slow"].deferred = True
        self.fetches = 0  # that came through the agent
        self.may_go_on = asyncio.Event()
        self.may_go_on.set()
        process_later = Dispatch.process_later

        async def held_up(dispatch: Dispatch, fetched: Fetched, agent: str, handle: RecordHandler) -> None:
            self.fetches += 1
            await self.may_go_on.wait()
            await process_later(dispatch, fetched, agent, handle)

        patched.setattr(Dispatch, "process_later", held_up)

    async def send(self, app: EngineApp, value: str) -> None:
        """Write a value, and wait until the transport has handed it on."""
        await publish(app, self.tally.source, "k", value.encode())
        task, topic = app.engine.task(app.engine.partition_for(b"k")), self.tally.source.name
        await wait_until(lambda: task.dispatch.is_busy_with(topic) or value in self.seen(app), f"{value} is here")

    def seen(self, app: EngineApp) -> tuple[str, ...]:
        """What is committed."""
        return (row(app, self.tally.table, "k") or Seen()).values


async def test_later_fetches_go_past_an_agent_that_lets_all_of_them_linger(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Alone(monkeypatch)
    async with running(make_settings(broker, tmp_path), [alone.tally.service]) as app:
        for number in range(20):
            await alone.send(app, str(number))
            await caught_up(app)
        assert alone.seen(app) == tuple(str(number) for number in range(20))
        assert alone.fetches == 1


async def test_no_fetch_overtakes_one_that_its_agent_still_has(
    broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alone = Alone(monkeypatch)
    async with running(make_settings(broker, tmp_path), [alone.tally.service]) as app:
        alone.may_go_on.clear()
        await alone.send(app, "a")
        await wait_until(lambda: alone.fetches == 1, "the agent has the first")
        task, topic = app.engine.task(app.engine.partition_for(b"k")), alone.tally.source.name
        await publish(app, alone.tally.source, "k", b"b")
        await wait_until(lambda: task.backlog.queued[topic] == 2, "the second waits for the agent")
        # One turn for the first: from now on the agent is known to let everything linger, and still has the second.
        alone.may_go_on.set()
        alone.may_go_on.clear()
        await wait_until(lambda: alone.fetches == 2, "the agent has the second")
        await publish(app, alone.tally.source, "k", b"c")
        await asyncio.sleep(0.3)
        assert alone.seen(app) in ((), ("a",))
        alone.may_go_on.set()
        await caught_up(app)
        assert alone.seen(app) == ("a", "b", "c")
