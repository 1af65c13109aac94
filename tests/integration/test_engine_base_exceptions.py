"""A handler may raise anything at all, SystemExit included: it fails its record and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from engine.declare.envelope import Envelope
from engine.declare.timers import Timer
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.topics import DEAD_LETTERS
from engine.faust.app import EngineApp
from engine.log.ports import Record
from streams.settings import Settings
from tests.apps import (
    TRANSPORTS,
    Seen,
    Tally,
    broker_url,
    caught_up,
    dead_letters,
    keys_beside,
    make_settings,
    publish,
    publish_keyed,
    read_topic,
    row,
    running,
    unique,
    wait_until,
)
from tests.integration.test_engine_outside import Ask, Asking, Outside

KEY = "key"


class Whatever(BaseException):
    """Derived from nothing that anybody would expect."""


class Unspeakable(Exception):
    """Not even its text can be had."""

    def __str__(self) -> str:
        raise SystemExit("no text")


ERRORS: tuple[type[BaseException], ...] = (
    SystemExit,
    KeyboardInterrupt,
    GeneratorExit,
    asyncio.CancelledError,
    BaseExceptionGroup,
    StopIteration,
    StopAsyncIteration,
    RecursionError,
    Whatever,
    Unspeakable,
)
NAMES = [error.__name__ for error in ERRORS]


def fail(name: str) -> None:
    """Raise the error of that name, if there is one."""
    for error in ERRORS:
        if error.__name__ == name:
            raise error("as told", [SystemExit()]) if error is BaseExceptionGroup else error("as told")


def error_types(letters: list[Record]) -> list[str]:
    return [dict(letter.headers)["error_type"].decode() for letter in letters]


@pytest.fixture(params=TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path, retry_count=0)


def lives(app: EngineApp) -> dict[int, int]:
    """The lives of all partitions; equal as long as none has begun anew."""
    return {number: id(task) for number, task in app.engine.tasks.items()}


def around(words: list[str]) -> list[str]:
    """Each word with good ones before and after it."""
    return [word for name in words for word in (f"before {name}", name)] + ["last"]


def good(words: list[str]) -> tuple[str, ...]:
    return tuple(word for word in around(words) if word not in words)


def apart(app: EngineApp, words: list[str]) -> list[tuple[str, str]]:
    """(key, word) of each word and the good ones around it, as one batch: bad ones have keys of their own, and wait."""
    keys = dict(zip(words, keys_beside(app, KEY, len(words)), strict=True))
    return [(keys.get(word, KEY), word) for word in around(words)]


async def test_whatever_a_handler_raises_fails_its_record_alone(settings: Settings) -> None:
    tally = Tally()

    def handle(record: Record, work: UnitOfWork) -> str:
        event_type = Tally.handle(tally, record, work)
        fail((record.value or b"").decode())
        return event_type

    tally.handle = handle  # type: ignore[method-assign]
    async with running(settings, [tally.service]) as app:
        before = lives(app)
        await publish_keyed(app, tally.source, *apart(app, NAMES))
        await caught_up(app)
        await tally.check(app, {KEY: good(NAMES)})
        assert error_types(await dead_letters(app, tally.source)) == NAMES
        assert lives(app) == before


async def test_whatever_a_timer_raises_ends_that_timer_alone(settings: Settings) -> None:
    tally, key = Tally(), unique("key")  # on a shared Kafka others have dead letters of timers too

    def handle(record: Record, work: UnitOfWork) -> str:
        work.schedule("ring", f"{key}/{(record.value or b'').decode()}", record.timestamp_ms, record.value or b"")
        return "value"

    def ring(timer: Timer, work: UnitOfWork) -> None:
        seen = work.get(tally.table, key) or Seen()
        work.put(tally.table, key, Seen((*seen.values, timer.payload.decode())))
        fail(timer.payload.decode())

    tally.handle = handle  # type: ignore[method-assign]
    tally.service.timers["ring"] = ring
    async with running(settings, [tally.service]) as app:
        before = lives(app)
        await publish(app, tally.source, key, *(word.encode() for word in around(NAMES)))
        prefix = f"{key}/".encode()
        expected = set(good(NAMES))
        await wait_until(lambda: set((row(app, tally.table, key) or Seen()).values) == expected, "the good ones fired")
        await caught_up(app)
        letters = [letter for letter in await read_topic(app, DEAD_LETTERS) if (letter.key or b"").startswith(prefix)]
        assert sorted(error_types(letters)) == sorted(NAMES)
        assert lives(app) == before


def _in_prepare(asking: Asking) -> None:
    ask = asking._prepare

    def prepare(outside: Outside, message: Envelope[Ask], work: UnitOfWork) -> Coroutine[Any, Any, str] | None:
        fail(message.payload.word)
        return ask(outside, message, work)

    asking.asking.make_call = prepare


def _in_the_call(asking: Asking) -> None:
    ask = asking.outside.ask

    async def failing(key: str, word: str) -> str:
        await asyncio.sleep(0)
        fail(word)
        return await ask(key, word)

    asking.outside.ask = failing  # type: ignore[method-assign]


def _in_the_handler(asking: Asking) -> None:
    store = asking._store

    def failing(message: Envelope[Ask], work: UnitOfWork) -> None:
        store(message, work)
        fail(message.payload.word)

    asking.asking.handlers[Ask] = failing


@pytest.mark.parametrize("where", [_in_prepare, _in_the_call, _in_the_handler])
async def test_whatever_a_call_to_the_outside_raises_fails_its_record_alone(
    settings: Settings, where: Callable[[Asking], None]
) -> None:
    asking = Asking()
    where(asking)
    async with running(settings, [asking.service]) as app:
        before = lives(app)
        await asking.send_keyed(app, *apart(app, NAMES))
        await caught_up(app)
        assert asking.answers(app, KEY) == tuple(word.upper() for word in good(NAMES))
        found = error_types(await dead_letters(app, asking.source))
        # A coroutine cannot raise StopIteration: Python makes a RuntimeError of it.
        instead = {"StopIteration": "RuntimeError"} if where is _in_the_call else {}
        assert found == [instead.get(name, name) for name in NAMES]
        assert lives(app) == before


async def test_prepare_may_raise_anything_when_a_call_is_made_again_too(settings: Settings) -> None:
    asking = Asking()
    ask, prepared = asking._prepare, 0

    def prepare(outside: Outside, message: Envelope[Ask], work: UnitOfWork) -> Coroutine[Any, Any, str] | None:
        nonlocal prepared
        prepared += 1
        if prepared > 1 and message.payload.word == "SystemExit":
            fail("SystemExit")
        return ask(outside, message, work)

    asking.asking.make_call = prepare
    async with running(settings, [asking.service]) as app:
        before = lives(app)
        asking.outside.away = True
        (beside,) = keys_beside(app, KEY, 1)
        await asking.send_keyed(app, (KEY, "a"), (beside, "SystemExit"))
        await wait_until(lambda: prepared > 1, "the call is made again")
        asking.outside.away = False
        await caught_up(app)
        assert asking.answers(app, KEY) == ("A",)
        assert error_types(await dead_letters(app, asking.source)) == ["SystemExit"]
        assert lives(app) == before


async def test_a_call_that_is_cancelled_because_its_partition_is_lost_is_made_again(settings: Settings) -> None:
    asking = Asking()
    async with running(settings, [asking.service]) as app:
        asking.outside.held = {"a"}
        await asking.send(app, KEY, "a")
        await wait_until(lambda: asking.outside.open == 1, "the call is under way")
        number = app.engine.partition_for(KEY.encode())
        app.engine.tasks[number].life.fail(ConnectionError("lost"))
        await wait_until(lambda: len(asking.outside.calls) == 2, "the call is made again")
        asking.outside.let_go("a")
        await caught_up(app)
        assert asking.answers(app, KEY) == ("A",)
        assert await dead_letters(app, asking.source) == []
