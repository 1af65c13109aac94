"""Timers fire once, in the order they fall due by production time, over crashes and restarts."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.declare.service import Service
from engine.declare.table import Table
from engine.declare.timers import TIMERS, Timer
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.failures import service as service_of_letters
from engine.failures.topics import DEAD_LETTERS
from engine.log.ports import Outgoing, Record
from engine.work.life import TaskState
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    HandlerFailed,
    Seen,
    at_rest,
    broker_url,
    caught_up,
    crash,
    hand_fed,
    make_settings,
    publish,
    read_topic,
    row,
    running,
    start,
    unique,
    wait_until,
)
from tests.letters import closed_letters, open_letters, retry

KEY = "key"
NEVER_MS = 10**13


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


class Alarms:
    """A service that sets and cancels timers as its records say, and adds what fires to its key's row.

    A record's value is `name:ms`, `name` to be called `ms` after the record was produced, or `-name:ms` to cancel it.
    """

    def __init__(self) -> None:
        name = unique("alarms")
        self.source = Topic(f"{name}-in", "timers to set")
        self.output = Topic(f"{name}-out", "timers that fired")
        self.table: Table[str, Seen] = Table(f"{name}-fired", Seen)
        self.service = Service(name, tables=(self.table,), topics=(self.output,))
        self.service.agent("alarms", self.source).on_record(self.set_alarm)
        self.service.timers["ring"] = self.ring
        self.service.timers["broken"] = self.break_down
        self.base_ms: int | None = None

    def set_alarm(self, record: Record, work: UnitOfWork) -> str:
        name, _, delay = (record.value or b"").decode().partition(":")
        kind, _, name = name.rpartition("/")
        self.base_ms = self.base_ms or record.timestamp_ms
        due_ms = self.base_ms + int(delay)
        if name.startswith("-"):
            work.cancel(kind or "ring", f"{KEY}/{name[1:]}", due_ms)
        else:
            work.schedule(kind or "ring", f"{KEY}/{name}", due_ms, name.encode())
        return "alarm"

    def ring(self, timer: Timer, work: UnitOfWork) -> None:
        key, name = timer.key.split("/")
        seen = work.get(self.table, key) or Seen()
        work.put(self.table, key, Seen((*seen.values, name)))
        work.send_raw(self.output, key.encode(), name.encode())
        if name == "again":
            work.schedule("ring", f"{key}/echo", timer.due_ms + 1)
        if name == "encore" and name not in seen.values:
            work.schedule(timer.kind, timer.key, timer.due_ms, timer.payload)

    def break_down(self, timer: Timer, work: UnitOfWork) -> None:
        self.ring(timer, work)
        raise HandlerFailed("out of order")

    def fired(self, app: Any) -> tuple[str, ...]:
        seen = row(app, self.table, KEY)
        return seen.values if seen is not None else ()

    async def check(self, app: Any, *names: str) -> None:
        """Check that these timers, and no others, have fired, each once and in this order, in state and output."""
        assert self.fired(app) == names
        assert [record.value for record in await read_topic(app, self.output)] == [name.encode() for name in names]
        task = app.engine.task(app.engine.partition_for(KEY.encode()))
        assert not [timer for key, timer in task.scan(TIMERS) if key.due_ms < NEVER_MS]


async def test_timers_fire_in_the_order_they_fall_due_and_only_once(settings: Settings) -> None:
    alarms = Alarms()
    async with running(settings, [alarms.service]) as app:
        await publish(
            app, alarms.source, KEY, b"third:40", b"second:-20", b"first:-3000", b"last:60", b"much later:9999999"
        )
        await wait_until(lambda: "last" in alarms.fired(app), "the last timer has fired")
        task = app.engine.task(app.engine.partition_for(KEY.encode()))
        waiting = [timer.payload for _, timer in task.scan(TIMERS)]
        assert waiting == [b"much later"]
        assert alarms.fired(app) == ("first", "second", "third", "last")
        assert len(await read_topic(app, alarms.output)) == 4


async def test_production_time_decides_when_a_timer_fires_and_not_when_it_was_handled(settings: Settings) -> None:
    alarms = Alarms()
    alarms.base_ms = int(time.time() * 1000) - 60_000  # as after an outage: the records' time is long past
    async with running(settings, [alarms.service]) as app:
        await publish(app, alarms.source, KEY, b"late:59000", b"earlier:30000")
        await wait_until(lambda: len(alarms.fired(app)) == 2, "both have fired")
        await alarms.check(app, "earlier", "late")


async def test_a_cancelled_timer_does_not_fire(settings: Settings) -> None:
    alarms = Alarms()
    async with running(settings, [alarms.service]) as app:
        await publish(app, alarms.source, KEY, b"in one commit:30", b"-in one commit:30", b"later:120", b"sentinel:150")
        await caught_up(app)
        await publish(app, alarms.source, KEY, b"-later:120", b"-never was:9")
        await wait_until(lambda: "sentinel" in alarms.fired(app), "the sentinel has fired")
        await alarms.check(app, "sentinel")


async def test_a_timer_handler_can_set_the_next_timer(settings: Settings) -> None:
    alarms = Alarms()
    async with running(settings, [alarms.service]) as app:
        await publish(app, alarms.source, KEY, b"again:-10")
        await wait_until(lambda: "echo" in alarms.fired(app), "the second has fired")
        await alarms.check(app, "again", "echo")


async def test_a_timer_that_is_set_again_for_the_same_time_by_its_own_handler_fires_again(settings: Settings) -> None:
    alarms = Alarms()
    async with running(settings, [alarms.service]) as app:
        await publish(app, alarms.source, KEY, b"encore:-10")
        await wait_until(lambda: len(alarms.fired(app)) == 2, "it has fired twice")
        await publish(app, alarms.source, KEY, b"sentinel:0")
        await wait_until(lambda: "sentinel" in alarms.fired(app), "the sentinel has fired")
        await alarms.check(app, "encore", "encore", "sentinel")


async def test_a_timer_whose_handler_fails_after_it_has_set_it_again_is_one_dead_letter_and_ends(
    settings: Settings,
) -> None:
    alarms = Alarms()
    async with running(settings, [alarms.service]) as app:
        await publish(app, alarms.source, KEY, b"broken/encore:-30")
        await wait_until(lambda: app.engine.metrics.dead_letters, "it is a dead letter")
        for count, sentinel in enumerate((b"first:0", b"second:0"), start=1):  # it would fire again in between
            await publish(app, alarms.source, KEY, sentinel)
            await wait_until(lambda count=count: len(alarms.fired(app)) == count, "the sentinel has fired")  # type: ignore[misc]
        await alarms.check(app, "first", "second")
        assert app.engine.metrics.dead_letters == 1


async def test_timers_survive_a_restart(settings: Settings) -> None:
    alarms = Alarms()
    async with running(settings, [alarms.service]) as app:
        await publish(app, alarms.source, KEY, b"before:-10")
        await wait_until(lambda: alarms.fired(app), "the first has fired")
        alarms.base_ms = int(time.time() * 1000)
        await publish(app, alarms.source, KEY, b"after:400")
        await caught_up(app)
    async with running(settings, [alarms.service]) as app:
        await wait_until(lambda: "after" in alarms.fired(app), "the second has fired after the restart")
        await alarms.check(app, "before", "after")


@pytest.mark.parametrize("step", ["before 2", "after 3", "after 5", "after 6"])
async def test_a_timer_fires_exactly_once_with_a_crash_in_its_commit(settings: Settings, step: str) -> None:
    alarms = Alarms()

    def probe(reached: str) -> None:
        if reached == step and alarms.service.timers["ring"] is not alarms.ring:
            raise ConnectionError(step)

    rung: list[str] = []

    def ring_and_note(timer: Timer, work: UnitOfWork) -> None:
        rung.append(timer.key)
        alarms.ring(timer, work)

    async with running(settings, [alarms.service]) as app:
        await publish(app, alarms.source, KEY, b"once:1200")  # later than this application ends
        await caught_up(app)
    alarms.service.timers["ring"] = ring_and_note
    doomed = await start(settings, [alarms.service], probe=probe)
    await wait_until(lambda: doomed.engine.metrics.commit_failures, "the timer's commit has failed")
    await crash(doomed)
    assert rung
    alarms.service.timers["ring"] = alarms.ring
    async with running(settings, [alarms.service]) as app:
        await wait_until(lambda: alarms.fired(app), "it has fired")
        await publish(app, alarms.source, KEY, b"sentinel:0")
        await wait_until(lambda: "sentinel" in alarms.fired(app), "the sentinel has fired")
        await alarms.check(app, "once", "sentinel")


async def test_a_timer_that_fails_becomes_a_dead_letter_and_does_not_hold_up_others(settings: Settings) -> None:
    alarms = Alarms()
    async with running(settings, [alarms.service]) as app:
        await publish(app, alarms.source, KEY, b"broken/bad:-30", b"unknown/strange:-20", b"good:-10")
        await wait_until(lambda: "good" in alarms.fired(app), "the good one has fired")
        await wait_until(lambda: app.engine.metrics.dead_letters == 2, "the others have failed for good")
        await at_rest(app)
        await alarms.check(app, "good")
        letters = {
            dict(record.headers)["original_topic"]: record
            for record in await read_topic(app, DEAD_LETTERS)
            if record.key in (f"{KEY}/bad".encode(), f"{KEY}/strange".encode())
        }
        assert set(letters) == {b"timer broken", b"timer unknown"}
        bad = letters[b"timer broken"]
        headers = dict(bad.headers)
        assert (bad.value, headers["error_type"], headers["error"]) == (b"bad", b"HandlerFailed", b"out of order")


async def test_no_timer_fires_for_a_partition_that_is_gone(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path, partitions=1)
    alarms, gate, reports = Alarms(), asyncio.Event(), list[dict[str, Any]]()
    gate.set()
    asyncio.get_running_loop().set_exception_handler(lambda _, report: reports.append(report))
    async with hand_fed(settings, [alarms.service], gate=gate) as fed:
        task = fed.engine.tasks[0]
        gate.clear()
        values: list[Outgoing] = [(KEY.encode(), b"too late:30", ())]
        await fed.handle(0, alarms.source, "alarms", alarms.set_alarm, *values)
        task.work.ran_dry()
        await asyncio.sleep(0)
        losing = asyncio.create_task(fed.engine.assigned([], 3))
        await wait_until(lambda: task.life.state is TaskState.CLOSED, "the partition is being closed")
        gate.set()
        await losing
        await _after(alarms, 30)
    assert reports == []


async def _after(alarms: Alarms, delay_ms: int) -> None:
    """Return when a timer of this delay would have fired."""
    assert alarms.base_ms is not None
    loop, fired = asyncio.get_running_loop(), asyncio.Event()
    ring: Callable[[], None] = fired.set
    loop.call_later(max(0.0, (alarms.base_ms + delay_ms + 20) / 1000 - time.time()), ring)
    await fired.wait()


async def test_a_timer_that_fails_is_set_anew_and_a_dead_one_can_be_tried_again(tmp_path: Path) -> None:
    alarms, tries = Alarms(), list[tuple[int, int]]()
    failures = [HandlerFailed("out of order")] * 5

    def moody(timer: Timer, work: UnitOfWork) -> None:
        tries.append((work.retry_count, timer.due_ms))
        alarms.ring(timer, work)
        if failures:
            raise failures.pop()

    alarms.service.timers["moody"] = moody
    async with running(make_settings("embedded://", tmp_path), [alarms.service, service_of_letters.service]) as app:
        await publish(app, alarms.source, KEY, b"moody/late:-10")
        await wait_until(lambda: open_letters(app), "it has failed for good")
        ((letter_id, letter),) = open_letters(app).items()
        assert (letter.agent, letter.topic, letter.retry_count, letter.lane) == ("timers", "timer moody", 3, None)
        assert [count for count, _ in tries] == [0, 1, 2, 3]
        await retry(app, letter_id)
        await wait_until(lambda: closed_letters(app), "it has fired")
        assert [count for count, _ in tries[4:]] == [0, 1]
        assert len({due_ms for _, due_ms in tries}) == 1, "it still says when it was due at first"
        await alarms.check(app, "late")
        assert closed_letters(app)[letter_id].state == "resolved"
