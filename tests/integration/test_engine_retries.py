"""A record that fails is tried again, then parked; its aggregate waits behind it in order, all others go on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest

from engine.declare.errors import NotRetryable, UndecodableRecord
from engine.declare.settings import TopicRetries
from engine.declare.unit_of_work import UnitOfWork
from engine.failures import service as service_of_letters
from engine.failures.dead_letters import DEAD_LETTERS, DISCARDED, OPEN, RESOLVED, RETRYING, letter_id
from engine.failures.decisions import RetryDeadLetter
from engine.failures.lanes import WAITING
from engine.failures.topics import DEAD_LETTER_COMMANDS
from engine.faust.app import EngineApp
from engine.log.ports import Record
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    TRANSPORTS,
    HandlerFailed,
    Tally,
    at_rest,
    broker_url,
    caught_up,
    crash,
    dead_letters,
    hand_fed,
    make_settings,
    process,
    publish,
    publish_keyed,
    running,
    start,
    stop,
    wait_until,
)
from tests.letters import closed_letters, decision, discard, lanes, open_letters, retry, waiting


class Hopeless(NotRetryable):
    """Trying again does not help."""


class Moody(Tally):
    """A tally whose handler fails for a value as often as it is told, after it has done all of its work.

    `tries` notes every try of a value as (value, retry_count).
    """

    def __init__(self) -> None:
        super().__init__("moody", "moody")
        self.fails: dict[bytes, int] = {}
        self.hopeless: set[bytes] = set()
        self.tries: list[tuple[str, int]] = []
        self.services = [self.service, service_of_letters.service]

    def handle(self, record: Record, work: UnitOfWork) -> str:
        value = record.value or b""
        self.tries.append((value.decode(), work.retry_count))
        super().handle(record, work)
        if value in self.hopeless:
            raise Hopeless(value.decode())
        if self.fails.get(value, 0) > 0:
            self.fails[value] -= 1
            raise HandlerFailed(value.decode())
        return "value"


class Slow(Moody):
    """The same as a projection that lingers."""

    def __init__(self) -> None:
        super().__init__()
        self.service.agents["moody"].deferred = True


ALWAYS = 1_000_000


@pytest.fixture(params=TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


@pytest.fixture(params=DURABLE_TRANSPORTS)
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


async def send(app: EngineApp, moody: Moody, *keyed: tuple[str, str]) -> None:
    """Write (key, value) pairs into one partition, whatever their keys."""
    await publish_keyed(app, moody.source, *keyed)


def changed(settings: Settings, **changes: Any) -> Settings:
    return settings.model_copy(update=changes)


# ---- retries


@pytest.mark.parametrize("make", [Moody, Slow])
async def test_a_record_that_fails_is_tried_again_and_its_aggregate_keeps_its_order(
    settings: Settings, make: type[Moody]
) -> None:
    moody = make()
    moody.fails = {b"b": 3}
    async with running(settings, moody.services) as app:
        await publish(app, moody.source, "k", b"a", b"b", b"c", b"d")
        await at_rest(app)
        await moody.check(app, {"k": ["a", "b", "c", "d"]})
        assert [count for value, count in moody.tries if value == "b"] == [0, 1, 2, 3]
        assert (open_letters(app), closed_letters(app), lanes(app), waiting(app)) == ({}, {}, {}, {})
        assert await dead_letters(app, moody.source) == []
        assert +app.engine.metrics.retries == {"moody": 3}


async def test_while_a_record_waits_other_aggregates_of_its_partition_go_on(settings: Settings) -> None:
    moody = Moody()
    moody.fails = {b"b": 1}
    async with running(changed(settings, retry_backoff=30.0), moody.services) as app:
        await send(app, moody, ("k", "a"), ("k", "b"), ("other10", "x"), ("k", "c"), ("other10", "y"))
        await caught_up(app)
        await moody.check(app, {"k": ["a"], "other10": ["x", "y"]})
        assert [record.value for record in waiting(app).values()] == [b"b", b"c"]
        (lane,) = lanes(app).values()
        assert lane.due_ms is not None
        assert 20 < lane.due_ms / 1000 - time.time() < 34


async def test_an_error_that_says_so_is_not_tried_again(settings: Settings) -> None:
    moody = Moody()
    moody.hopeless = {b"b"}
    async with running(changed(settings, retry_backoff=30.0), moody.services) as app:
        await publish(app, moody.source, "k", b"a", b"b", b"c")
        await caught_up(app)
        ((_, letter),) = open_letters(app).items()
        assert (letter.error_type, letter.retry_count, letter.value, letter.state) == ("Hopeless", 0, b"b", OPEN)
        await moody.check(app, {"k": ["a"]})


async def test_retries_are_settings_and_may_differ_for_a_topic(settings: Settings) -> None:
    general, special = Moody(), Tally("special", "special")
    general.fails, special.poison = {b"a": ALWAYS}, {b"a"}
    own = {special.source.name: TopicRetries(count=1)}
    patient = changed(settings, retry_count=2, retry_topics=own)
    async with running(patient, [*general.services, special.service]) as app:
        await publish(app, general.source, "k", b"a")
        await publish(app, special.source, "k", b"a")
        await at_rest(app)
        assert {letter.agent: letter.retry_count for letter in open_letters(app).values()} == {
            "moody": 2,
            "special": 1,
        }


async def test_retries_and_those_behind_survive_a_crash(durable: Settings) -> None:
    moody = Moody()
    moody.fails = {b"b": 2}
    app = await start(changed(durable, retry_backoff=0.2), moody.services)
    await publish(app, moody.source, "k", b"a", b"b", b"c")
    await caught_up(app)
    assert len(waiting(app)) == 2
    await crash(app)
    async with running(changed(durable, retry_backoff=0.2), moody.services) as app:
        await publish(app, moody.source, "k", b"d")
        await at_rest(app)
        await moody.check(app, {"k": ["a", "b", "c", "d"]})
        assert [count for value, count in moody.tries if value == "b"] == [0, 1, 2]


# ---- parked aggregates


async def test_a_record_that_fails_for_good_parks_its_aggregate_until_a_retry_works(durable: Settings) -> None:
    moody = Moody()
    moody.fails = {b"b": ALWAYS}
    app = await start(durable, moody.services)
    await send(app, moody, ("k", "a"), ("k", "b"), ("k", "c"), ("other10", "x"))
    await at_rest(app)
    ((letter_id, letter),) = open_letters(app).items()
    assert (letter.error_type, letter.retry_count, letter.key, letter.lane) == ("HandlerFailed", 3, b"k", 1)
    (told,) = await dead_letters(app, moody.source)
    headers = dict(told.headers)
    assert (headers["retry_count"], headers["dead_letter_id"].decode()) == (b"3", letter_id)
    await stop(app)

    async with running(durable, moody.services) as app:
        await send(app, moody, ("k", "d"), ("other10", "y"))
        await at_rest(app)
        await moody.check(app, {"k": ["a"], "other10": ["x", "y"]})
        assert [record.value for record in waiting(app).values()] == [b"c", b"d"]
        moody.fails.clear()
        await retry(app, letter_id)
        await at_rest(app)
        await moody.check(app, {"k": ["a", "b", "c", "d"], "other10": ["x", "y"]})
        assert (open_letters(app), lanes(app), waiting(app)) == ({}, {}, {})
        resolved = closed_letters(app)[letter_id]
        assert (resolved.state, resolved.replays) == (RESOLVED, 1)
        assert [(action.action, action.by) for action in resolved.actions] == [
            ("retry", "operator-1"),
            ("resolved", None),
        ]


async def test_discarding_lets_those_behind_go_on_in_order(settings: Settings) -> None:
    moody = Moody()
    moody.fails = {b"b": ALWAYS, b"d": ALWAYS}
    async with running(settings, moody.services) as app:
        await publish(app, moody.source, "k", b"a", b"b", b"c", b"d", b"e")
        await at_rest(app)
        ((first, _),) = open_letters(app).items()
        await discard(app, first, reason="no such thing")
        await at_rest(app)
        await moody.check(app, {"k": ["a", "c"]})
        ((second, letter),) = open_letters(app).items()
        assert letter.value == b"d"
        await discard(app, second)
        await at_rest(app)
        await moody.check(app, {"k": ["a", "c", "e"]})
        closed = closed_letters(app)
        assert [closed[text].state for text in (first, second)] == [DISCARDED, DISCARDED]
        assert closed[first].actions[-1].detail == "no such thing"
        assert lanes(app) == {}


async def test_a_retry_that_fails_again_is_the_same_letter_again(settings: Settings) -> None:
    moody = Moody()
    moody.fails = {b"b": ALWAYS}
    async with running(changed(settings, replays_max=2), moody.services) as app:
        await publish(app, moody.source, "k", b"b", b"c")
        await at_rest(app)
        ((letter_id, _),) = open_letters(app).items()
        for replays in (1, 2):
            await retry(app, letter_id)
            await at_rest(app)
            ((again, letter),) = open_letters(app).items()
            assert (again, letter.state, letter.replays) == (letter_id, OPEN, replays)
        tries = len(moody.tries)
        await retry(app, letter_id)  # one too many
        await at_rest(app)
        assert len(moody.tries) == tries
        await discard(app, letter_id)
        await at_rest(app)
        await moody.check(app, {"k": ["c"]})


async def test_a_double_click_and_a_retry_after_the_first_one_worked_apply_once(settings: Settings) -> None:
    moody = Moody()
    moody.fails = {b"b": ALWAYS}
    async with running(settings, moody.services) as app:
        await publish(app, moody.source, "k", b"b", b"c")
        await at_rest(app)
        ((letter_id, _),) = open_letters(app).items()
        moody.fails.clear()
        await retry(app, letter_id, letter_id)
        await at_rest(app)
        await retry(app, letter_id)
        await discard(app, letter_id)
        await at_rest(app)
        await moody.check(app, {"k": ["b", "c"]})
        assert closed_letters(app)[letter_id].state == RESOLVED


async def test_a_retry_that_is_put_off_waits_for_its_time_and_may_be_discarded_meanwhile(settings: Settings) -> None:
    moody = Moody()
    moody.fails = {b"b": ALWAYS}
    async with running(settings, moody.services) as app:
        await publish(app, moody.source, "k", b"b", b"c")
        await at_rest(app)
        ((letter_id, _),) = open_letters(app).items()
        tries = len(moody.tries)
        await retry(app, letter_id, not_before_ms=int(time.time() * 1000) + 600_000)
        await caught_up(app)
        assert open_letters(app)[letter_id].state == RETRYING
        assert len(moody.tries) == tries
        await discard(app, letter_id)
        await at_rest(app)
        await moody.check(app, {"k": ["c"]})


async def test_a_record_that_cannot_be_read_parks_nothing_and_can_be_retried(settings: Settings) -> None:
    moody = Moody()
    moody.hopeless = {b"bad"}
    Hopeless.parks = False  # type: ignore[attr-defined]
    try:
        async with running(settings, moody.services) as app:
            await publish(app, moody.source, "k", b"a", b"bad", b"b")
            await caught_up(app)
            await moody.check(app, {"k": ["a", "b"]})
            ((letter_id, letter),) = open_letters(app).items()
            assert letter.lane is None
            await retry(app, letter_id)
            await at_rest(app)
            assert (open_letters(app)[letter_id].state, lanes(app)) == (OPEN, {})
            moody.hopeless.clear()
            await retry(app, letter_id)
            await at_rest(app)
            await moody.check(app, {"k": ["a", "b", "bad"]})
            assert closed_letters(app)[letter_id].state == RESOLVED
    finally:
        del Hopeless.parks  # type: ignore[attr-defined]


@pytest.mark.parametrize("is_retryable", [True, False], ids=["tried-again", "parked"])
async def test_a_record_that_fails_in_the_commit_in_which_a_letter_is_retried_waits_behind_it(
    tmp_path: Path, is_retryable: bool
) -> None:
    moody = Moody()
    topic, agent = moody.source, "moody"
    settings = make_settings("memory://", tmp_path, partitions=1, commit_interval=5.0, retry_backoff=60.0)
    async with hand_fed(settings, moody.services) as fed:
        task = fed.engine.tasks[0]
        await fed.handle(0, topic, agent, cannot_read, (b"k", b"bad", ()))
        ((number, _),) = task.work.current.rows[DEAD_LETTERS].items()
        task.work.ran_dry()
        await wait_until(lambda: task.reached(agent, topic.name) == 1, "the letter is committed")

        asked = await fed.write(DEAD_LETTER_COMMANDS, 0, [decision(RetryDeadLetter(letter_id(0, number)))])
        decisions = service_of_letters.decisions
        await process(fed.fetch(0, DEAD_LETTER_COMMANDS, asked), decisions.name, fed.bound(decisions))
        moody.fails, moody.hopeless = ({b"a": 1}, set()) if is_retryable else ({}, {b"a"})
        await fed.handle(0, topic, agent, moody.handle, (b"k", b"a", ()))
        task.work.ran_dry()
        await wait_until(lambda: task.reached(agent, topic.name) == 2, "both are committed")
        waiting = [(key.number, record.value, record.letter) for key, record in task.scan(WAITING)]
        assert waiting == [(1, b"bad", number), (2, b"a", None)]


def cannot_read(record: Record, work: UnitOfWork) -> str:
    raise UndecodableRecord("always")


# ---- limits


async def test_at_the_limit_of_an_aggregate_its_topic_stands_still_and_loses_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    moody = Moody()
    moody.fails = {b"b": ALWAYS}
    behind = [f"c{number}" for number in range(10)]
    async with running(changed(settings, waiting_per_aggregate_max=4, retry_count=0), moody.services) as app:
        await send(app, moody, ("k", "b"), *[("k", value) for value in behind], ("other10", "x"))
        number = app.engine.partition_for(b"k")
        task = app.engine.task(number)
        source = "moody", moody.source.name
        await wait_until(lambda: source in task.stalled, "the topic stands still")
        await wait_until(lambda: len(waiting(app)) == 3, "what has room waits")
        ((letter_id, _),) = open_letters(app).items()
        # The dead letter itself takes a place, and does not wait.
        assert f"stands still for moody: 3 records wait, 3 of them behind dead letter {letter_id}:" in caplog.text
        await send(app, moody, ("k", "d"))
        await discard(app, letter_id)
        await at_rest(app)
        await moody.check(app, {"k": [*behind, "d"], "other10": ["x"]})
        assert source not in task.stalled


async def test_a_topic_that_stands_still_does_so_again_after_a_crash(durable: Settings) -> None:
    moody = Moody()
    moody.fails = {b"b": ALWAYS}
    limited = changed(durable, waiting_max=3, retry_count=0)
    app = await start(limited, moody.services)
    await send(app, moody, ("k", "b"), ("k", "1"), ("k", "2"), ("k", "3"), ("k", "4"))
    source, number = ("moody", moody.source.name), app.engine.partition_for(b"k")
    await wait_until(lambda: source in app.engine.task(number).stalled and len(waiting(app)) == 2, "it stands still")
    await crash(app)
    async with running(limited, moody.services) as app:
        await wait_until(lambda: source in app.engine.task(number).stalled, "it stands still again")
        moody.fails.clear()
        await retry(app, *open_letters(app))
        await at_rest(app)
        await moody.check(app, {"k": ["b", "1", "2", "3", "4"]})


async def test_memory_is_bounded_while_a_topic_stands_still(settings: Settings) -> None:
    moody = Moody()
    moody.fails = {b"b": ALWAYS}
    async with running(changed(settings, waiting_max=2, retry_count=0), moody.services) as app:
        number = app.engine.partition_for(b"k")
        await send(app, moody, ("k", "b"), ("k", "1"))
        for turn in range(20):
            await send(app, moody, *[("k", f"{turn}-{count}") for count in range(5)])
            await asyncio.sleep(0)
        task, source = app.engine.task(number), ("moody", moody.source.name)
        await wait_until(lambda: source in task.stalled, "it stands still")
        assert task.stalled.sources()[source] <= 3
        await wait_until(lambda: open_letters(app), "the letter that it waits for is committed")
        await discard(app, *open_letters(app))
        await at_rest(app)
        await moody.check(
            app, {"k": ["1", *[f"{turn}-{count}" for turn in range(20) for count in range(5)]]}
        )  # fmt: skip
