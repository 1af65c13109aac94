"""A handler that cannot be interrupted ends the process; the next one makes a dead letter of its record."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.failures.topics import DEAD_LETTERS
from engine.log.ports import Record
from engine.watchdog.watchdog import EXIT_STUCK
from streams.settings import Settings
from tests.apps import DURABLE_TRANSPORTS, Seen, broker_url, caught_up, read_topic, row, running, unique
from tests.chaos.faults import Worker
from tests.chaos.stuck_worker import GO, KEY, RETURNED, WAITING, WORDS, Stubborn

COMMAND = ("-m", "tests.chaos.stuck_worker")
DEADLINE_S = 20.0

pytestmark = [pytest.mark.chaos]


class Site:
    """A worker process, its settings, and its service as this process sees it."""

    def __init__(self, folder: Path, broker: str, handler_timeout: float) -> None:
        name = unique("stubborn")
        shared: dict[str, Any] = {
            "app_id": name,
            "partitions": 4,
            "session_timeout": 2.0,
            "saga": "none",
            "handler_timeout": handler_timeout,
        }
        environment = {f"ORDERS_{name.upper()}": str(value) for name, value in shared.items()}
        self.worker = Worker("w1", folder, broker, {**environment, "STUCK_NAME": name})
        self.settings = Settings(
            _env_file=None, broker=broker, data_dir=self.worker.data_dir, web_port=self.worker.port, **shared
        )
        self.stubborn = Stubborn(name)

    def marks(self) -> list[Path]:
        """The files with marks."""
        return list((self.worker.data_dir / "stuck").glob("*"))

    async def until(self, condition: Any, what: str) -> None:
        """Wait for something that the worker does; fails when it ends before."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            self.worker.check()
            assert time.monotonic() < deadline, f"in vain until {what}\n{self.worker.log_tail()}"
            await asyncio.sleep(0.02)

    async def found(self) -> tuple[Seen | None, list[Record]]:
        """The row, and the dead letters of this service, once the worker has stopped."""
        async with running(self.settings, [self.stubborn.service]) as app:
            await caught_up(app)
            letters = [letter for letter in await read_topic(app, DEAD_LETTERS) if self._is_ours(letter)]
            return row(app, self.stubborn.table, KEY), letters

    def _is_ours(self, letter: Record) -> bool:
        return self.settings.app_id.encode() in dict(letter.headers)["original_topic"]


@pytest.fixture(params=DURABLE_TRANSPORTS)
def broker(request: pytest.FixtureRequest) -> str:
    return broker_url(request)


@pytest.fixture
def site(broker: str, tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path, broker, handler_timeout=0.2)
    yield site
    site.worker.kill()


@pytest.mark.parametrize(
    ("what", "times", "handled", "dead"),
    [
        ("handler", 2, ("a", "b", "c"), ("stuck", "stuck too")),
        ("timer", 1, ("a", "timer", "b"), ("timer",)),
        ("call", 2, ("a", "b", "c"), ("prepare", "call")),
    ],
)
async def test_the_process_ends_and_the_next_one_makes_a_dead_letter_of_what_it_was_stuck_in(
    site: Site, what: str, times: int, handled: tuple[str, ...], dead: tuple[str, ...]
) -> None:
    worker = site.worker
    for life in range(times):
        worker.start(COMMAND, {"STUCK_WRITES": what} if life == 0 else {})
        status = await asyncio.to_thread(worker.wait, DEADLINE_S)
        assert status == EXIT_STUCK, worker.log_tail()
        log = worker.log_of_this_life()
        assert "could not be interrupted" in log
        assert "in never_return" in log
        assert len(site.marks()) == 1
    worker.start(COMMAND)
    await site.until(lambda: not site.marks(), "the mark is gone")
    await asyncio.to_thread(worker.stop)

    seen, letters = await site.found()
    assert seen == Seen(handled), "each is handled once"
    assert [dict(letter.headers)["error_type"] for letter in letters] == [b"HandlerTimeout"] * len(dead)
    assert all(b"in never_return" in dict(letter.headers)["trace"] for letter in letters)
    if what != "timer":
        assert [word for letter in letters for word in dead if b'"%s"' % word.encode() in (letter.value or b"")] == [
            *dead
        ]
    assert not site.marks()


async def test_the_time_for_which_a_process_is_frozen_does_not_count(tmp_path: Path) -> None:
    timeout_s = 1.0
    site = Site(tmp_path, "embedded://", timeout_s)
    worker = site.worker
    try:
        worker.start(COMMAND, {"STUCK_WRITES": "wait"})
        await site.until((tmp_path / WAITING).exists, "the handler waits")
        worker.freeze()
        (tmp_path / GO).touch()  # it returns at once when it wakes up
        await asyncio.sleep(2.5 * timeout_s)  # beyond both timeouts
        worker.thaw()
        await site.until((tmp_path / RETURNED).exists, "the handler has returned")
        await asyncio.to_thread(worker.stop)
    finally:
        worker.kill()
    seen, letters = await site.found()
    assert (seen, letters) == (Seen(WORDS["wait"]), [])
