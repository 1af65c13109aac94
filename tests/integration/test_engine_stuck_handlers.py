"""A handler that does not return is interrupted: its record is a dead letter, and the worker goes on."""

from __future__ import annotations

import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from engine.declare.envelope import Envelope
from engine.declare.timers import Timer
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.topics import DEAD_LETTERS
from engine.log.partitioner import partition_for
from engine.log.ports import Record, TopicSpec
from engine.watchdog.stuck import StuckRecords
from engine.watchdog.watchdog import watching
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    TRANSPORTS,
    Seen,
    Tally,
    broker_url,
    caught_up,
    connected,
    dead_letters,
    make_settings,
    publish,
    publish_keyed,
    read_committed,
    read_topic,
    row,
    running,
    unique,
    wait_until,
)
from tests.integration.test_engine_base_exceptions import apart, error_types, lives
from tests.integration.test_engine_outside import Ask, Asking, Outside

KEY = "key"
TIMEOUT_S = 0.2


def loop_for_ever() -> None:
    while True:
        pass


def sleep() -> None:
    time.sleep(1000)


def swallow_exceptions() -> None:
    while True:
        with suppress(Exception):
            time.sleep(0.001)
            raise ValueError


HANGING: dict[str, Callable[[], None]] = {"loop": loop_for_ever, "sleep": sleep, "swallow": swallow_exceptions}
WORDS = [word for name in HANGING for word in (f"before {name}", name)] + ["last"]
GOOD = tuple(word for word in WORDS if word not in HANGING)
TIMEOUTS = ["HandlerTimeout"] * len(HANGING)


def hang(word: str) -> None:
    HANGING.get(word, lambda: None)()


@pytest.fixture(params=TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


@pytest.fixture(params=DURABLE_TRANSPORTS)
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


@pytest.fixture(autouse=True)
def watched() -> Iterator[None]:
    with watching(TIMEOUT_S):
        yield


async def test_a_record_whose_handler_hangs_is_a_dead_letter_and_others_of_its_batch_are_handled(
    settings: Settings,
) -> None:
    tally = Tally()

    def handle(record: Record, work: UnitOfWork) -> str:
        event_type = Tally.handle(tally, record, work)
        hang((record.value or b"").decode())
        return event_type

    tally.handle = handle  # type: ignore[method-assign]
    async with running(settings, [tally.service]) as app:
        before = lives(app)
        await publish_keyed(app, tally.source, *apart(app, list(HANGING)))
        await caught_up(app)
        await tally.check(app, {KEY: GOOD})
        letters = await dead_letters(app, tally.source)
        assert error_types(letters) == TIMEOUTS
        assert [letter.value for letter in letters] == [name.encode() for name in HANGING]
        own = dict(letters[1].headers)
        assert own["error"] == b"the handler did not return within 0.2 s and was interrupted"
        assert b"in sleep" in own["trace"]
        assert lives(app) == before


async def test_a_timer_that_hangs_is_a_dead_letter_and_others_fire(settings: Settings) -> None:
    tally, key = Tally(), unique("key")  # on a shared Kafka others have dead letters of timers too

    def handle(record: Record, work: UnitOfWork) -> str:
        word = (record.value or b"").decode()
        work.schedule("ring", f"{key}/{word}", record.timestamp_ms, record.value or b"")
        return "value"

    def ring(timer: Timer, work: UnitOfWork) -> None:
        seen = work.get(tally.table, KEY) or Seen()
        work.put(tally.table, KEY, Seen((*seen.values, timer.payload.decode())))
        hang(timer.payload.decode())

    tally.handle = handle  # type: ignore[method-assign]
    tally.service.timers["ring"] = ring
    async with running(settings, [tally.service]) as app:
        before = lives(app)
        await publish(app, tally.source, KEY, *(word.encode() for word in WORDS))
        await wait_until(lambda: set((row(app, tally.table, KEY) or Seen()).values) == set(GOOD), "the good ones fired")
        prefix = f"{key}/".encode()
        letters = [letter for letter in await read_topic(app, DEAD_LETTERS) if (letter.key or b"").startswith(prefix)]
        assert error_types(letters) == TIMEOUTS
        assert lives(app) == before


def _in_prepare(asking: Asking) -> None:
    ask = asking._prepare

    def prepare(outside: Outside, message: Envelope[Ask], work: UnitOfWork) -> Coroutine[Any, Any, str] | None:
        hang(message.payload.word)
        return ask(outside, message, work)

    asking.asking.make_call = prepare


def _in_the_call(asking: Asking) -> None:
    ask = asking.outside.ask

    async def hanging(key: str, word: str) -> str:
        answer = await ask(key, word)
        hang(word)
        return answer

    asking.outside.ask = hanging  # type: ignore[method-assign]


def _in_the_handler(asking: Asking) -> None:
    store = asking._store

    def hanging(message: Envelope[Ask], work: UnitOfWork) -> None:
        store(message, work)
        hang(message.payload.word)

    asking.asking.handlers[Ask] = hanging


@pytest.mark.parametrize("where", [_in_prepare, _in_the_call, _in_the_handler])
async def test_a_call_to_the_outside_that_hangs_is_a_dead_letter_and_others_of_its_batch_are_handled(
    settings: Settings, where: Callable[[Asking], None]
) -> None:
    asking = Asking()
    where(asking)
    async with running(settings, [asking.service]) as app:
        before = lives(app)
        await asking.send_keyed(app, *apart(app, list(HANGING)))
        await caught_up(app)
        assert asking.answers(app, KEY) == tuple(word.upper() for word in GOOD)
        assert error_types(await dead_letters(app, asking.source)) == TIMEOUTS
        assert lives(app) == before


async def test_a_call_may_wait_for_longer_than_a_handler_may_run(settings: Settings) -> None:
    asking = Asking()
    async with running(settings, [asking.service]) as app:
        asking.outside.held = {"a"}
        await asking.send(app, KEY, "a")
        await wait_until(lambda: asking.outside.open == 1, "the call is under way")
        began = time.monotonic()
        await wait_until(lambda: time.monotonic() > began + 2.5 * TIMEOUT_S, "both timeouts are over")
        asking.outside.let_go("a")
        await caught_up(app)
        assert asking.answers(app, KEY) == ("A",)


async def written(settings: Settings, tally: Tally, *values: bytes) -> list[Record]:
    """Records that wait for the application to start, all of one key."""
    number = partition_for(KEY.encode(), settings.partitions)
    async with connected(settings, [TopicSpec(tally.source.name, settings.partitions, False, None)]) as broker:
        await broker.publish(tally.source.name, number, [(KEY.encode(), value, ()) for value in values])
        end = await broker.end_offset(tally.source.name, number)
        return await read_committed(broker, tally.source.name, number, end)


def mark(settings: Settings, tally: Tally, record: Record) -> Path:
    """Mark a record as a worker does that was stuck in it; the file of marks."""
    number = partition_for(KEY.encode(), settings.partitions)
    StuckRecords(settings, number).add(tally.AGENT, tally.source.name, record, "it was stuck", "here")
    return settings.data_dir / "stuck" / f"{number}.json"


async def test_a_mark_stays_until_the_dead_letter_of_its_record_is_committed(durable: Settings) -> None:
    tally, commits_fail = Tally(), True

    def probe(step: str) -> None:
        if commits_fail and step == "before 2":
            raise ConnectionError(step)

    records = await written(durable, tally, b"a", b"stuck", b"b")
    marks = mark(durable, tally, records[1])
    async with running(durable, [tally.service], probe=probe) as app:
        await wait_until(lambda: app.engine.metrics.commit_failures > 1, "commits with the dead letter have failed")
        assert marks.exists()
        commits_fail = False
        await caught_up(app)
        await tally.check(app, {KEY: ("a",)})  # what comes behind it waits
        (letter,) = await dead_letters(app, tally.source)
        own = dict(letter.headers)
        assert (letter.value, own["error_type"], own["error"]) == (b"stuck", b"HandlerTimeout", b"it was stuck")
        assert b"The main thread was here:\nhere" in own["trace"]
        await wait_until(lambda: not marks.exists(), "the mark is gone")


async def test_a_mark_whose_record_was_passed_meanwhile_is_removed_at_the_start(durable: Settings) -> None:
    tally = Tally()
    records = await written(durable, tally, b"a", b"b")
    async with running(durable, [tally.service]) as app:
        await caught_up(app)
    marks = mark(durable, tally, records[1])  # left behind by a worker that owned the partition before
    async with running(durable, [tally.service]) as app:
        assert not marks.exists()
        await publish(app, tally.source, KEY, b"c")
        await caught_up(app)
        await tally.check(app, {KEY: ("a", "b", "c")})
        assert await dead_letters(app, tally.source) == []
