"""The commit: six steps, each of which may fail without anything being lost, doubled or seen too early."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from engine.declare.service import Service
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Outgoing, Record
from engine.partition.task import PartitionTask
from engine.work.life import TaskState
from engine.work.loop_share import RECORDS_MAX
from engine.work.waiters import PartitionLost
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    Seen,
    Tally,
    at_rest,
    broker_url,
    caught_up,
    dead_letters,
    hand_fed,
    make_settings,
    publish,
    row,
    running,
    unique,
    wait_until,
)

STEPS = ["before 2", "after 2", "after 3", "after 4", "after 5", "after 6"]
KEY = "key"


class Injected(Exception):
    """A failure made by the test."""


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


@pytest.fixture
def own_settings(tmp_path: Path) -> Settings:
    return make_settings("memory://", tmp_path, partitions=1)


class FailOnce:
    """A probe that raises at `step` when it is armed."""

    def __init__(self, step: str) -> None:
        self.step = step
        self.armed = False

    def __call__(self, reached: str) -> None:
        if self.armed and reached == self.step:
            self.armed = False
            raise Injected(reached)


@pytest.mark.parametrize("step", STEPS)
async def test_an_error_in_any_step_ends_the_partition_task_and_nothing_is_lost_or_doubled(
    settings: Settings, step: str
) -> None:
    tally, probe = Tally(), FailOnce(step)
    async with running(settings, [tally.service], probe=probe) as app:
        await publish(app, tally.source, KEY, b"a")
        await caught_up(app)
        number = app.engine.partition_for(KEY.encode())
        before = app.engine.tasks[number]
        probe.armed = True
        await publish(app, tally.source, KEY, b"b", b"c")
        error = await asyncio.wait_for(asyncio.shield(before.life.failed), 20)
        assert isinstance(error, Injected)
        await publish(app, tally.source, KEY, b"d")
        await caught_up(app)
        assert app.engine.tasks[number] is not before
        assert before.life.state is TaskState.CLOSED
        assert app.engine.metrics.commit_failures == 1
        assert app.engine.metrics.partition_failures >= 1
        await tally.check(app, {KEY: ["a", "b", "c", "d"]})
    async with running(settings, [tally.service]) as again:
        await caught_up(again)
        await tally.check(again, {KEY: ["a", "b", "c", "d"]})


@pytest.mark.parametrize("settings", ["memory", *DURABLE_TRANSPORTS], indirect=True)
async def test_readers_and_waiters_see_nothing_before_the_last_step(settings: Settings) -> None:
    tally, seen = Tally(), dict[str, tuple[Seen | None, int, bool]]()
    woken: asyncio.Task[bool] | None = None
    task: PartitionTask | None = None

    def look(step: str) -> None:
        if woken is not None and task is not None and step != "after 6":
            agent_reached = task.reached(Tally.AGENT, tally.source.name)
            seen[step] = row(app, tally.table, KEY), agent_reached, woken.done()

    async with running(settings, [tally.service], probe=look) as app:
        await publish(app, tally.source, KEY, b"a")
        await caught_up(app)
        task = app.engine.task(app.engine.partition_for(KEY.encode()))
        woken = asyncio.create_task(task.waiters.wait(Tally.AGENT, tally.source.name, 2, 20))
        await asyncio.sleep(0)
        await publish(app, tally.source, KEY, b"b")
        assert await woken
        assert row(app, tally.table, KEY) == Seen(("a", "b"))
    assert seen == dict.fromkeys(STEPS[:-1], (Seen(("a",)), 1, False))


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
async def test_a_waiter_is_told_when_its_partition_is_lost_instead_of_being_woken(settings: Settings) -> None:
    tally, probe = Tally(), FailOnce("after 5")
    probe.armed = True
    async with running(settings, [tally.service], probe=probe) as app:
        task = app.engine.task(app.engine.partition_for(KEY.encode()))
        waiting = asyncio.create_task(task.waiters.wait(Tally.AGENT, tally.source.name, 1, 20))
        await asyncio.sleep(0)
        await publish(app, tally.source, KEY, b"a")
        with pytest.raises(PartitionLost):
            await waiting
        await caught_up(app)
        await tally.check(app, {KEY: ["a"]})


# ---- what handlers read


def reading(tally: Tally, got: list[Seen | None]) -> Callable[[Record, UnitOfWork], str]:
    def handle(record: Record, work: UnitOfWork) -> str:
        got.append(work.get(tally.table, KEY))
        return tally.handle(record, work)

    return handle


def keyed(*values: str) -> list[Outgoing]:
    return [(KEY.encode(), value.encode(), ()) for value in values]


async def test_handlers_read_the_open_unit_of_work_then_the_committing_one_then_what_is_committed(
    own_settings: Settings,
) -> None:
    tally, got, gate = Tally(), list[Seen | None](), asyncio.Event()
    handle = reading(tally, got)
    gate.set()
    async with hand_fed(own_settings, [tally.service], gate=gate) as fed:
        task = fed.engine.tasks[0]
        await fed.handle(0, tally.source, Tally.AGENT, handle, *keyed("a"))
        task.work.ran_dry()
        await wait_until(lambda: task.reached(Tally.AGENT, tally.source.name) == 1, "a is committed")
        gate.clear()
        await fed.handle(0, tally.source, Tally.AGENT, handle, *keyed("b"))
        task.work.ran_dry()
        await asyncio.sleep(0)  # the commit of b has begun and waits
        await fed.handle(0, tally.source, Tally.AGENT, handle, *keyed("c", "d"))
        assert got == [None, Seen(("a",)), Seen(("a", "b")), Seen(("a", "b", "c"))]
        assert task.read(tally.table, KEY) == Seen(("a",))
        gate.set()
        await wait_until(lambda: task.reached(Tally.AGENT, tally.source.name) == 2, "b is committed")
        assert task.read(tally.table, KEY) == Seen(("a", "b"))
        task.work.ran_dry()
        await wait_until(lambda: task.reached(Tally.AGENT, tally.source.name) == 4, "all is committed")
        assert task.read(tally.table, KEY) == Seen(("a", "b", "c", "d"))


async def test_a_failed_commit_takes_along_what_was_open_committing_and_cached(own_settings: Settings) -> None:
    tally, got, gate, probe = Tally(), list[Seen | None](), asyncio.Event(), FailOnce("after 5")
    handle = reading(tally, got)
    gate.set()
    async with hand_fed(own_settings, [tally.service], gate=gate) as fed:
        fed.engine.probe = probe
        before = fed.engine.tasks[0]
        await fed.handle(0, tally.source, Tally.AGENT, handle, *keyed("a"))
        before.work.ran_dry()
        await wait_until(lambda: before.reached(Tally.AGENT, tally.source.name) == 1, "a is committed")
        gate.clear()
        probe.step, probe.armed = "after 4", True
        await fed.handle(0, tally.source, Tally.AGENT, handle, *keyed("b"))
        before.work.ran_dry()
        await fed.handle(0, tally.source, Tally.AGENT, handle, *keyed("c"))
        gate.set()
        await wait_until(before.life.failed.done, "the commit has failed")
        await wait_until(lambda: fed.engine.tasks.get(0) is not before and fed.engine.is_ready(), "it lives again")
        assert fed.hand.positions[tally.source.name, 0] == 1
        assert fed.engine.tasks[0].read(tally.table, KEY) == Seen(("a",))
        got.clear()
        await fed.handle(0, tally.source, Tally.AGENT, handle, *keyed("d"))
        assert got == [Seen(("a",))]


# ---- a savepoint per record


@pytest.mark.parametrize("settings", ["memory", *DURABLE_TRANSPORTS], indirect=True)
async def test_a_failing_handler_takes_back_its_own_record_only(settings: Settings) -> None:
    tally = Tally()
    tally.poison = {b"bad", b"worse"}
    async with running(settings, [tally.service]) as app:
        number = app.engine.partition_for(KEY.encode())
        keyed = [(KEY, b"a"), ("x", b"bad"), (KEY, b"b"), ("y", b"worse"), (KEY, b"c")]
        await app.engine.broker.publish(
            tally.source.name, number, [(key.encode(), value, ()) for key, value in keyed]
        )  # fmt: skip
        await at_rest(app)
        await tally.check(app, {KEY: ["a", "b", "c"]})
        letters = await dead_letters(app, tally.source)
        assert sorted(letter.value or b"" for letter in letters) == [b"bad", b"worse"]


@pytest.mark.parametrize("settings", ["memory", *DURABLE_TRANSPORTS], indirect=True)
async def test_a_commit_in_which_every_change_of_a_table_was_taken_back_goes_through(settings: Settings) -> None:
    tally = Tally()
    tally.poison = {b"bad"}
    async with running(settings, [tally.service]) as app:
        number = app.engine.partition_for(KEY.encode())
        await app.engine.broker.publish(tally.source.name, number, [(b"other", b"bad", ())])
        await at_rest(app)
        assert len(await dead_letters(app, tally.source)) == 1
        await publish(app, tally.source, KEY, b"good")
        await caught_up(app)
        await tally.check(app, {KEY: ["good"]})
        assert app.engine.metrics.commit_failures == 0


# ---- when to commit


async def test_an_idle_partition_commits_each_record_at_once_however_long_the_interval(
    request: pytest.FixtureRequest, settings: Settings, tmp_path: Path
) -> None:
    tally = Tally()
    patient = settings.model_copy(update={"commit_interval": 5.0})
    async with running(patient, [tally.service]) as app, asyncio.timeout(20):  # 20 records at 5 s each would take 100 s
        for number in range(20):
            await publish(app, tally.source, KEY, f"{number}".encode())
            await caught_up(app)
        assert app.engine.metrics.commits >= 20
        await tally.check(app, {KEY: [f"{number}" for number in range(20)]})


async def test_a_busy_partition_commits_many_records_at_once_and_never_more_than_the_limit(
    tmp_path: Path,
) -> None:
    settings = make_settings("memory://", tmp_path, partitions=1, commit_interval=5.0, commit_records_max=50)
    topic, service, sizes = Topic(unique("busy"), "busy"), Service("busy"), list[int]()
    service.agent("count", topic)

    def count(record: Record, work: UnitOfWork) -> str:
        sizes.append(work.records + 1)
        return "counted"

    async with hand_fed(settings, [service]) as fed:
        task = fed.engine.tasks[0]
        for start in range(0, 400, 100):
            await fed.handle(0, topic, "count", count, *((b"k", b"%d" % n, ()) for n in range(start, start + 100)))
        assert max(sizes) == 50
        await wait_until(lambda: task.reached("count", topic.name) >= 350, "full units of work are committed")
        assert fed.engine.metrics.commits <= 8
        task.work.ran_dry()
        await wait_until(lambda: task.reached("count", topic.name) == 400, "the rest is committed")


async def test_while_somebody_asks_the_embedded_log_is_written_in_small_commits(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path, partitions=1, commit_interval=5.0)
    topic, service, sizes = Topic(unique("asked"), "asked"), Service("asked"), list[int]()
    service.agent("count", topic)

    def count(record: Record, work: UnitOfWork) -> str:
        sizes.append(work.records + 1)
        fed.engine.loop_share.somebody_asks()
        return "counted"

    async with hand_fed(settings, [service]) as fed:
        fed.engine.loop_share.somebody_asks()
        await fed.handle(0, topic, "count", count, *((b"k", b"%d" % number, ()) for number in range(1000)))
        assert max(sizes) == RECORDS_MAX


async def test_a_partition_with_more_to_come_commits_when_the_interval_is_over(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path, partitions=1, commit_interval=0.05)
    tally = Tally()
    async with hand_fed(settings, [tally.service]) as fed:
        task = fed.engine.tasks[0]
        await fed.handle(0, tally.source, Tally.AGENT, tally.handle, *keyed("a"))
        assert fed.engine.metrics.commits == 0
        await wait_until(lambda: task.reached(Tally.AGENT, tally.source.name) == 1, "the interval is over")


# ---- the loop stays alive


async def test_a_large_batch_lets_others_run_in_between(own_settings: Settings) -> None:
    topic, service = Topic(unique("large"), "large"), Service("large")
    service.agent("spin", topic)
    turns_at: list[int] = []
    turns = 0
    record_s = 5e-6  # the batch is 100 ms of work

    async def turn() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    def spin(record: Record, work: UnitOfWork) -> str:
        turns_at.append(turns)
        until = time.perf_counter() + record_s
        while time.perf_counter() < until:
            pass
        return "spun"

    async with hand_fed(own_settings, [service]) as fed:
        records = [Record(offset, 0, b"k", b"v" * 10, ()) for offset in range(20_000)]
        others = asyncio.create_task(turn())
        fetched = fed.fetch(0, topic, records)
        await fed.engine.tasks[0].dispatch.process(fetched, "spin", spin)
        others.cancel()
    assert len(turns_at) == 20_000
    assert len(set(turns_at)) > 10
