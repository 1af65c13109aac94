"""Rebuilding a projection beside the running one: equal rows, damage mended, kills survived, nothing done elsewhere."""

from __future__ import annotations

import asyncio
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from engine.declare.agent import Projection
from engine.declare.service import Service
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.classify import InfrastructureError
from engine.failures.dead_letters import DEAD_LETTERS, DeadLetter
from engine.failures.replay import give_up, try_again
from engine.faust.app import EngineApp
from engine.log.ports import Reader, Record
from engine.partition.engine import PartitionNotHere
from engine.positions.acceptance import accept_losses
from engine.rebuilds import run as rebuild_run
from engine.rebuilds.comparison import Comparison
from engine.rebuilds.loop import RebuildUnderWay
from engine.rebuilds.rows import CANCELLED, DONE, FAILED, REBUILT_ROWS, Rebuild
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    TRANSPORTS,
    HandlerFailed,
    Seen,
    at_rest,
    broker_url,
    connected,
    crash,
    make_settings,
    publish_keyed,
    read_topic,
    row,
    running,
    start,
    unique,
    wait_until,
)
from tests.integration.web import go_on, hold_up
from tests.lost_records import delete_topic, remove_before, until_gone

AGENT = "project-seen"
KEYS = [f"k{number}" for number in range(9)]
MANY_KEYS = [f"k{number}" for number in range(2000)]
LONG = 10_000  # records that take a rebuild a moment


class Injected(Exception):
    """A failure made by the test."""


class Projected:
    """A projection of its own: the values of each key in their order, and how many there were of each value."""

    def __init__(self, has_effects: bool = False) -> None:
        name = unique("projected")
        self.has_effects = has_effects
        self.source = Topic(f"{name}-in", "values of keys")
        self.output = Topic(f"{name}-out", "the same values again")
        self.seen: Table[str, Seen] = Table(f"{name}-seen", Seen)
        self.counts: Table[str, int] = Table(f"{name}-counts", int)
        self.service = Service(name, tables=(self.seen, self.counts), topics=(self.output,))
        self.service.on_timer(f"{name}-timer")(lambda timer, work: self.fired.append(timer.key))
        self.timer = f"{name}-timer"
        self.fired: list[str] = []
        self.poison: set[bytes] = set()
        self.sent: dict[str, list[str]] = {}
        projection = self.service.projection(AGENT, self.source, self.seen, self.counts, help="Keep what was seen.")
        projection.on_record(self.handle)

    def handle(self, record: Record, work: UnitOfWork) -> str:
        """Handle one record, with effects elsewhere if there are to be any."""
        key, value = (record.key or b"").decode(), record.value or b""
        seen = work.get(self.seen, key) or Seen()
        work.put(self.seen, key, Seen((*seen.values, value.decode())))
        work.put(self.counts, value.decode(), (work.get(self.counts, value.decode()) or 0) + 1)
        if self.has_effects:
            work.send_raw(self.output, key.encode(), value)
            work.schedule(self.timer, key, work.now_ms)
        if value in self.poison:
            raise HandlerFailed(value.decode())
        return "value"

    async def send(self, app: EngineApp, *keyed: tuple[str, str]) -> None:
        """Write records, each into the partition of its key, and remember them."""
        for key, value in keyed:
            self.sent.setdefault(key, []).append(value)
        by_number: dict[int, list[tuple[str, str]]] = {}
        for key, value in keyed:
            by_number.setdefault(app.engine.partition_for(key.encode()), []).append((key, value))
        for records in by_number.values():
            await publish_keyed(app, self.source, *records)

    async def send_many(self, app: EngineApp, count: int, keys: Sequence[str] = KEYS) -> None:
        """Write so many records of some keys."""
        await self.send(app, *((keys[number % len(keys)], f"v{number % 7}") for number in range(count)))

    def check(self, app: EngineApp) -> None:
        """Check that the rows are a fold of what was sent, made independently."""
        counts: dict[tuple[int, str], int] = {}
        for key, values in self.sent.items():
            assert row(app, self.seen, key) == Seen(tuple(values)), key
            for value in values:
                place = app.engine.partition_for(key.encode()), value
                counts[place] = counts.get(place, 0) + 1
        found = {(n, value): count for n, task in app.engine.tasks.items() for value, count in task.scan(self.counts)}
        assert found == counts


@pytest.fixture(params=TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


@pytest.fixture
def own_settings(tmp_path: Path) -> Settings:
    return make_settings("memory://", tmp_path, partitions=1)


async def begin(app: EngineApp, id: str = "r1", check: bool = False) -> None:
    projection = app.engine.projections[AGENT]
    for task in app.engine.tasks.values():
        await task.rebuilds.begin(projection, id, check, int(time.time() * 1000))


async def begin_in_spite_of_failures(app: EngineApp, id: str = "r1") -> None:
    """Begin a rebuild as a client does that asks again after a 503."""
    projection = app.engine.projections[AGENT]
    for number in range(app.engine.settings.partitions):
        while True:
            try:
                task = app.engine.task(number)
                await task.rebuilds.begin(projection, id, False, int(time.time() * 1000))
                break
            except (InfrastructureError, PartitionNotHere):
                await asyncio.sleep(0.02)


def found(app: EngineApp, number: int) -> Rebuild | None:
    task = app.engine.tasks.get(number)
    progress = task.rebuilds.progress(app.engine.projections[AGENT]) if task is not None else None
    return progress.rebuild if progress is not None else None


async def ended(app: EngineApp, id: str = "r1", state: str = DONE) -> list[Rebuild]:
    """Wait until a rebuild has ended in all partitions, and return it from each."""
    numbers = range(app.engine.settings.partitions)

    def have_ended() -> bool:
        rebuilds = [found(app, number) for number in numbers]
        return all(rebuild is not None and rebuild.id == id and not rebuild.is_active for rebuild in rebuilds)

    await wait_until(have_ended, f"rebuild {id} has ended")
    rebuilds = [rebuild for number in numbers if (rebuild := found(app, number)) is not None]
    assert {rebuild.state for rebuild in rebuilds} == {state}, rebuilds
    assert not any(list(task.scan(REBUILT_ROWS)) for task in app.engine.tasks.values())
    return rebuilds


def differences(rebuilds: Sequence[Rebuild]) -> tuple[int, int, int]:
    """Rows added, changed and removed, of all partitions."""
    return tuple(sum(getattr(rebuild, name) for rebuild in rebuilds) for name in ("added", "changed", "removed"))


async def damage(app: EngineApp, rows: Mapping[tuple[Table[Any, Any], str], Any], by: str | None = None) -> None:
    """Replace rows in the partition of their key (or of `by`), as a mistake would have."""
    for (table, key), new in rows.items():
        task = app.engine.task(app.engine.partition_for((by or key).encode()))
        work = task.work.open()
        work.put(table, key, new)
        work.release()
        task.work.commit_soon()
        await wait_until(lambda task=task, table=table, key=key, new=new: task.read(table, key) == new, "it is damaged")  # type: ignore[misc]


async def test_a_rebuild_of_what_is_right_finds_no_difference_and_does_nothing_elsewhere(settings: Settings) -> None:
    projected = Projected(has_effects=True)
    async with running(settings, [projected.service]) as app:
        await projected.send_many(app, 300)
        await at_rest(app)
        await wait_until(lambda: len(projected.fired) > 0, "timers have fired")
        await at_rest(app)
        sent, fired = await read_topic(app, projected.output), len(projected.fired)
        assert len(sent) == 300
        await begin(app)
        rebuilds = await ended(app)
        assert differences(rebuilds) == (0, 0, 0)
        assert sum(rebuild.applied for rebuild in rebuilds) == 300
        assert sum(rebuild.suppressed for rebuild in rebuilds) == 600
        assert sum(rebuild.rows for rebuild in rebuilds) == len(KEYS) + len(
            [1 for task in app.engine.tasks.values() for _ in task.scan(projected.counts)]
        )
        await at_rest(app)
        assert await read_topic(app, projected.output) == sent
        assert len(projected.fired) == fired
        projected.check(app)


async def test_damaged_rows_are_found_shown_and_mended(settings: Settings) -> None:
    projected = Projected()
    async with running(settings, [projected.service]) as app:
        await projected.send_many(app, 90)
        await at_rest(app)
        await damage(
            app,
            {
                (projected.seen, "k1"): Seen(("wrong",)),
                (projected.seen, "k2"): None,
                (projected.seen, "nobody"): Seen(("superfluous",)),
            },
        )
        await begin(app, "look", check=True)
        looked = await ended(app, "look")
        assert differences(looked) == (1, 1, 1)
        assert row(app, projected.seen, "k1") == Seen(("wrong",))
        await begin(app, "mend")
        mended = await ended(app, "mend")
        assert differences(mended) == (1, 1, 1)
        samples = {bytes(sample.key): sample for rebuild in mended for sample in rebuild.samples}
        assert set(samples) == {b'"k1"', b'"k2"', b'"nobody"'}
        assert bytes(samples[b'"k1"'].before) == b'{"values":["wrong"]}'
        assert bytes(samples[b'"k2"'].before) == b"null"
        assert bytes(samples[b'"nobody"'].after) == b"null"
        assert row(app, projected.seen, "nobody") is None
        projected.check(app)
        await begin(app, "again")
        assert differences(await ended(app, "again")) == (0, 0, 0)


async def test_two_rebuilds_of_one_projection_are_refused_and_the_same_one_again_is_not(own_settings: Settings) -> None:
    projected = Projected()
    async with running(own_settings, [projected.service]) as app:
        await projected.send_many(app, LONG, MANY_KEYS)
        await at_rest(app)
        await begin(app)
        await begin(app)
        with pytest.raises(RebuildUnderWay):
            await begin(app, "another")
        await ended(app)
        await begin(app)  # it is over; asking again changes nothing
        assert (await ended(app))[0].applied == LONG
        projected.check(app)


async def test_rows_that_come_in_meanwhile_count_once(settings: Settings) -> None:
    projected, is_over = Projected(), False
    async with running(settings, [projected.service]) as app:
        await projected.send_many(app, 2000)
        await at_rest(app)
        await damage(app, {(projected.seen, key): None for key in KEYS[:3]})

        async def send_on() -> None:
            while not is_over:
                await projected.send(app, *((f"new-{number}", "n") for number in range(10)))
                await asyncio.sleep(0.01)

        sending = asyncio.create_task(send_on())
        await begin(app)
        rebuilds = await ended(app)
        is_over = True
        await sending
        await at_rest(app)
        assert differences(rebuilds) == (3, 0, 0) or differences(rebuilds) == (0, 3, 0)
        projected.check(app)
        await begin(app, "again")
        assert differences(await ended(app, "again")) == (0, 0, 0)


async def test_readers_see_each_row_as_before_or_as_after_and_never_fail(own_settings: Settings) -> None:
    projected = Projected()
    async with running(own_settings, [projected.service]) as app:
        await projected.send_many(app, 3000)
        await at_rest(app)
        right = dict(app.engine.task(0).scan(projected.seen))
        wrong = {key: Seen((f"wrong {key}",)) for key in KEYS}
        await damage(app, {(projected.seen, key): value for key, value in wrong.items()})
        views: list[dict[str, Seen]] = []

        async def read_on() -> None:
            while True:
                views.append(dict(app.engine.task(0).scan(projected.seen)))
                await asyncio.sleep(0)

        reading = asyncio.create_task(read_on())
        await begin(app)
        await ended(app)
        reading.cancel()
        # All of it is switched in one commit: no view is a mixture.
        assert {tuple(sorted(view.items())) for view in views} == {
            tuple(sorted(wrong.items())),
            tuple(sorted(right.items())),
        }


STEPS = ["before 2", "after 2", "after 3", "after 4", "after 5", "after 6"]
CASES = [
    *(("embedded", step) for step in STEPS),
    *(pytest.param("kafka", step, marks=pytest.mark.kafka) for step in STEPS[2::2]),
]


@pytest.mark.parametrize(("settings", "step"), CASES, indirect=["settings"])
async def test_a_rebuild_whose_commits_fail_goes_on_and_ends_as_if_nothing_had_been(
    settings: Settings, step: str
) -> None:
    projected, failing = Projected(), 0

    def probe(reached: str) -> None:
        nonlocal failing
        if reached == step and failing and random.Random(failing).random() < 0.4:
            failing -= 1
            raise Injected(reached)
        if reached == step and failing:
            failing -= 1

    async with running(settings, [projected.service], probe=probe) as app:
        await projected.send_many(app, 1500)
        await at_rest(app)
        await damage(app, {(projected.seen, "k1"): Seen(("wrong",)), (projected.seen, "k2"): None})
        failing = 12
        await begin_in_spite_of_failures(app)
        rebuilds = await ended(app)
        await wait_until(lambda: app.engine.is_ready(), "all partitions live again")
        await at_rest(app)
        assert app.engine.metrics.commit_failures > 0
        assert sum(rebuild.applied for rebuild in rebuilds) == 1500
        assert differences(rebuilds) == (1, 1, 0)
        projected.check(app)


async def test_a_rebuild_goes_on_after_a_crash_of_its_worker_and_on_another_store(tmp_path: Path) -> None:
    settings = make_settings("embedded://", tmp_path, partitions=1)
    projected = Projected()
    app = await start(settings, [projected.service])
    await projected.send_many(app, LONG, MANY_KEYS)
    await at_rest(app)
    await damage(app, {(projected.seen, "k1"): None})
    await begin(app)
    await wait_until(lambda: (found(app, 0) or Rebuild("", 0)).next > 1000, "it is on its way")
    await crash(app)
    shutil.rmtree(settings.data_dir / "stores")  # as on another worker: all of it comes from the changelogs
    async with running(settings, [projected.service]) as app:
        before = found(app, 0)
        assert before is not None
        assert before.next > 1000
        (rebuild,) = await ended(app)
        assert (rebuild.applied, rebuild.restarts, differences([rebuild])) == (LONG, 0, (1, 0, 0))
        projected.check(app)


async def test_a_rebalance_in_the_middle_loses_nothing(own_settings: Settings) -> None:
    projected = Projected()
    async with running(own_settings, [projected.service]) as app:
        await projected.send_many(app, LONG, MANY_KEYS)
        await at_rest(app)
        await begin(app)
        for _ in range(3):
            await hold_up(app)
            await asyncio.sleep(0.02)
            await go_on(app)
            await asyncio.sleep(0.02)
        (rebuild,) = await ended(app)
        assert (rebuild.applied, differences([rebuild])) == (LONG, (0, 0, 0))


async def test_a_cancelled_rebuild_leaves_everything_as_it_was(own_settings: Settings) -> None:
    projected = Projected()
    async with running(own_settings, [projected.service]) as app:
        await projected.send_many(app, LONG, MANY_KEYS)
        await at_rest(app)
        await damage(app, {(projected.seen, "k1"): None})
        await begin(app)
        task, projection = app.engine.task(0), app.engine.projections[AGENT]
        stopped = await task.rebuilds.stop(projection, 1)
        assert stopped is not None
        assert stopped.outcome == CANCELLED
        assert await task.rebuilds.stop(projection, 2) is not None
        await ended(app, state=CANCELLED)
        assert row(app, projected.seen, "k1") is None
        await begin(app, "again")
        assert differences(await ended(app, "again")) == (1, 0, 0)
        projected.check(app)


# ---- records that the running projection has not handled


async def letters_of(app: EngineApp, count: int) -> list[int]:
    task = app.engine.task(0)
    await wait_until(lambda: len(list(task.scan(DEAD_LETTERS))) == count, f"there are {count} dead letters")
    await at_rest(app)
    return [number for number, _ in sorted(task.scan(DEAD_LETTERS), key=lambda found: found[1].offset)]


async def decide(app: EngineApp, number: int, change: Callable[[UnitOfWork, DeadLetter], None]) -> None:
    """Do to a dead letter what its service does when somebody asks for it."""
    task = app.engine.task(0)
    letter, work = task.read(DEAD_LETTERS, number), task.work.open()
    assert letter is not None
    work.now_ms = int(time.time() * 1000)
    change(work, letter)
    work.release()
    task.work.commit_soon()
    await wait_until(lambda: task.read(DEAD_LETTERS, number) != letter, "the decision is committed")
    await at_rest(app)


async def test_dead_letters_and_what_waits_behind_them_are_left_out_as_long_as_they_are(
    own_settings: Settings,
) -> None:
    projected = Projected()
    projected.poison = {b"bad", b"worse"}
    async with running(own_settings, [projected.service]) as app:
        await projected.send(app, ("k1", "a"), ("k1", "bad"), ("k1", "b"), ("k2", "worse"), ("k2", "c"), ("k3", "d"))
        bad, worse = await letters_of(app, 2)
        projected.poison = set()
        expected: dict[str, tuple[str, ...]] = {"k1": ("a",), "k3": ("d",)}
        assert {key: seen.values for key, seen in app.engine.task(0).scan(projected.seen)} == expected
        await begin(app)
        (rebuild,) = await ended(app)
        assert (rebuild.applied, rebuild.waiting, differences([rebuild])) == (2, 4, (0, 0, 0))

        await decide(app, worse, lambda work, letter: give_up(work, worse, letter, "sent by mistake", None))
        await decide(app, bad, lambda work, letter: retry(work, bad, replace(letter, value=b"mended")))
        expected = {"k1": ("a", "mended", "b"), "k2": ("c",), "k3": ("d",)}
        assert {key: seen.values for key, seen in app.engine.task(0).scan(projected.seen)} == expected
        await damage(app, {(projected.seen, "k1"): None, (projected.seen, "k2"): None})
        await begin(app, "again")
        (rebuild,) = await ended(app, "again")
        assert (rebuild.applied, rebuild.waiting, rebuild.discarded) == (5, 0, 1)
        assert {key: seen.values for key, seen in app.engine.task(0).scan(projected.seen)} == expected


def retry(work: UnitOfWork, number: int, letter: DeadLetter) -> None:
    try_again(work, number, letter, work.now_ms, None)


async def test_a_decision_about_a_dead_letter_in_the_middle_lets_the_rebuild_begin_anew(own_settings: Settings) -> None:
    projected = Projected()
    projected.poison = {b"bad"}
    async with running(own_settings, [projected.service]) as app:
        await projected.send(app, ("failing", "bad"), ("failing", "a"))
        (bad,) = await letters_of(app, 1)
        await projected.send_many(app, LONG, MANY_KEYS)
        await at_rest(app)
        projected.poison = set()
        await begin(app)
        await wait_until(lambda: (found(app, 0) or Rebuild("", 0)).next > 100, "it has passed the letter")
        await decide(app, bad, lambda work, letter: retry(work, bad, letter))
        (rebuild,) = await ended(app)
        assert (rebuild.restarts, rebuild.waiting, differences([rebuild])) == (1, 0, (0, 0, 0))
        projected.check(app)


async def test_it_waits_for_records_that_are_tried_again_by_themselves(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path, partitions=1, retry_backoff=0.3, retry_jitter=0)
    projected = Projected()
    projected.poison = {b"bad"}
    async with running(settings, [projected.service]) as app:
        await projected.send(app, ("k1", "bad"), ("k2", "a"))
        await wait_until(lambda: app.engine.task(0).lanes.index.total == 1, "it waits")
        projected.poison = set()
        await begin(app)
        await asyncio.sleep(0.1)
        rebuild = found(app, 0)
        assert rebuild is not None
        assert (rebuild.outcome, rebuild.next) == ("running", 0)
        (rebuild,) = await ended(app)
        assert (rebuild.applied, rebuild.restarts, differences([rebuild])) == (2, 0, (0, 0, 0))


async def test_a_handler_that_fails_only_in_the_rebuild_ends_it_and_nothing_is_replaced(own_settings: Settings) -> None:
    projected = Projected()
    async with running(own_settings, [projected.service]) as app:
        await projected.send(app, ("k1", "a"), ("k1", "bad"))
        await at_rest(app)
        await damage(app, {(projected.seen, "k1"): None})
        projected.poison = {b"bad"}
        await begin(app)
        (rebuild,) = await ended(app, state=FAILED)
        assert rebuild.error == f"{projected.source.name}/0@1: HandlerFailed: bad"
        assert row(app, projected.seen, "k1") is None
        assert not list(app.engine.task(0).scan(DEAD_LETTERS))


async def test_a_handler_that_changes_a_table_its_projection_does_not_name_ends_the_rebuild(
    own_settings: Settings,
) -> None:
    projected = Projected()
    projected.service.agents[AGENT] = Projection(AGENT, projected.source, projected.seen)
    projected.service.agents[AGENT].on_record(projected.handle)
    async with running(own_settings, [projected.service]) as app:
        await projected.send(app, ("k1", "a"))
        await at_rest(app)
        await begin(app)
        (rebuild,) = await ended(app, state=FAILED)
        assert f"table {projected.counts.name} is changed by a handler" in (rebuild.error or "")
        projected.check(app)


async def test_a_record_that_once_hung_a_rebuild_for_good_ends_the_next_one(own_settings: Settings) -> None:
    projected = Projected()
    async with running(own_settings, [projected.service]) as app:
        await projected.send(app, ("k1", "a"), ("k1", "b"))
        await at_rest(app)
        stuck, (record, *_) = app.engine.task(0).life.stuck, await read_topic(app, projected.source)
        stuck.add(f"rebuild of {AGENT}", projected.source.name, record, "it hung", "here")
        await begin(app)
        (rebuild,) = await ended(app, state=FAILED)
        assert rebuild.error == f"{projected.source.name}/0@0: HandlerTimeout: it hung"
        assert not stuck
        await begin(app, "mended")
        assert differences(await ended(app, "mended")) == (0, 0, 0)


async def test_rows_that_cannot_be_read_any_more_are_mended(own_settings: Settings) -> None:
    projected = Projected()
    async with running(own_settings, [projected.service]) as app:
        await projected.send(app, ("k1", "a"), ("k2", "b"))
        await at_rest(app)
        task = app.engine.task(0)
        task.rows.store.write([(projected.seen.prefix, [(b"k1", b"garbage", ())])], {})
        assert task.read(projected.seen, "k1") == Seen(("a",)), "it is right in memory"
        await begin(app)
        (rebuild,) = await ended(app)
        assert (differences([rebuild]), bytes(rebuild.samples[0].before)) == ((0, 1, 0), b"null")
        assert task.read_raw(projected.seen, "k1") == b'{"values":["a"]}'


async def test_a_topic_that_has_lost_its_beginning_is_refused(own_settings: Settings) -> None:
    projected = Projected()
    async with running(own_settings, [projected.service]) as app:
        await projected.send(app, ("k1", "a"), ("k1", "b"))
        await at_rest(app)
        reader = app.engine.broker.reader
        app.engine.broker.reader = lambda *of: LateReader(reader(*of))  # type: ignore[method-assign]
        await begin(app)
        (rebuild,) = await ended(app, state=FAILED)
        assert rebuild.error == f"{projected.source.name}/0 begins at 1: its oldest records are gone"


async def failure_in(app: EngineApp, number: int, id: str) -> str:
    """Begin a rebuild that fails in one partition; why it does."""
    await begin(app, id)

    def has_ended() -> bool:
        rebuild = found(app, number)
        return rebuild is not None and rebuild.id == id and not rebuild.is_active

    await wait_until(has_ended, f"rebuild {id} has ended in partition {number}")
    rebuild = found(app, number)
    assert rebuild is not None
    assert rebuild.state == FAILED
    return rebuild.error or ""


async def test_a_rebuild_from_a_topic_that_has_lost_records_replaces_nothing(settings: Settings) -> None:
    projected = Projected()
    async with running(settings, [projected.service]) as app:
        await projected.send(app, ("k1", "a"), ("k1", "b"))
        await at_rest(app)
        number = app.engine.partition_for(b"k1")
        before = row(app, projected.seen, "k1")
        await remove_before(app.engine.broker, projected.source.name, number, 1)
        error = await failure_in(app, number, "1")
        assert error == f"{projected.source.name}/{number} begins at 1: its oldest records are gone"
        assert row(app, projected.seen, "k1") == before


@pytest.mark.parametrize("settings", DURABLE_TRANSPORTS, indirect=True)
async def test_a_rebuild_from_a_topic_that_was_made_anew_replaces_nothing_also_when_that_is_accepted(
    settings: Settings,
) -> None:
    projected = Projected()
    async with running(settings, [projected.service]) as app:
        await projected.send(app, ("k1", "a"))
        await at_rest(app)
    async with connected(settings) as broker:
        await delete_topic(broker, projected.source.name)
        await until_gone(broker, projected.source.name)
    async with running(settings, [projected.service]) as app:
        number = app.engine.partition_for(b"k1")
        assert "was deleted and made anew" in await failure_in(app, number, "1")
        await accept_losses(app.engine, projected.source.name, number, "ann", "a test")
        await projected.send(app, ("k1", "b"))
        await wait_until(lambda: row(app, projected.seen, "k1") == Seen(("a", "b")), "the agent has gone on")
        assert "accepted by ann" in await failure_in(app, number, "2")
        assert row(app, projected.seen, "k1") == Seen(("a", "b"))


class LateReader:
    """A real reader, of a topic whose first record somebody has deleted."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def bounds(self) -> Mapping[str, tuple[int, int]]:
        """What Kafka says after its DeleteRecords."""
        return {topic: (1, end) for topic, (_, end) in (await self._reader.bounds()).items()}


def test_what_is_made_of_a_topic_that_forgets_is_no_projection() -> None:
    table: Table[str, Seen] = Table("seen", Seen)
    service = Service("forgetful", tables=(table,))
    with pytest.raises(ValueError, match="not kept for ever"):
        service.projection("short", Topic("short", "kept a second", retention_ms=1000), table)
    with pytest.raises(ValueError, match="does not write other"):
        service.projection("long", Topic("long", "kept"), Table("other", Seen))


async def test_more_differences_than_one_commit_takes_are_replaced_in_portions(
    own_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_run, "DIFFERENCES_PER_COMMIT", 100)
    monkeypatch.setattr(rebuild_run, "DIFFERENCES_COUNTED_MAX", 600)
    projected = Projected()
    async with running(own_settings, [projected.service]) as app:
        await projected.send(app, *((f"key-{number}", "v") for number in range(2000)))
        await at_rest(app)
        task = app.engine.task(0)
        for number in range(1500):
            task.work.open().put(projected.seen, f"key-{number}", None)
        task.work.open().release()
        task.work.commit_soon()
        await wait_until(lambda: task.read(projected.seen, "key-0") is None, "most rows are gone")
        await begin(app, "look", check=True)
        (rebuild,) = await ended(app, "look")
        assert rebuild.are_more
        # At least 600 rows differed when they were looked at. Those that the rebuild had not committed then are equal
        # when they are counted.
        assert 0 < rebuild.added < 1500
        await begin(app, "mend")
        assert differences(await ended(app, "mend")) == (1500, 0, 0)
        projected.check(app)


@pytest.mark.parametrize("is_committed", [False, True])
async def test_rows_that_change_after_they_were_compared_are_compared_again(
    own_settings: Settings, monkeypatch: pytest.MonkeyPatch, is_committed: bool
) -> None:
    projected = Projected()
    walk, conclude = rebuild_run.RebuildRun._walk, rebuild_run.RebuildRun._conclude

    async def then_damage(run: rebuild_run.RebuildRun, comparison: Comparison) -> None:
        await walk(run, comparison)
        assert comparison.is_over
        if is_committed:
            await damage(app, {(projected.seen, "k1"): None})

    def damage_and_conclude(run: rebuild_run.RebuildRun, rebuild: Rebuild) -> None:
        if not is_committed:
            assert run._comparison is not None
            run._comparison.take()
            app.engine.task(0).work.open().put(projected.seen, "k1", None)
        conclude(run, rebuild)

    monkeypatch.setattr(rebuild_run.RebuildRun, "_walk", then_damage)
    monkeypatch.setattr(rebuild_run.RebuildRun, "_conclude", damage_and_conclude)
    async with running(own_settings, [projected.service]) as app:
        await projected.send_many(app, 90)
        await at_rest(app)
        await begin(app)
        assert differences(await ended(app)) == (1, 0, 0)
        projected.check(app)


async def test_it_does_not_switch_while_a_decision_about_a_dead_letter_is_being_committed(
    own_settings: Settings,
) -> None:
    projected = Projected()
    projected.poison = {b"bad"}
    async with running(own_settings, [projected.service]) as app:
        await projected.send(app, ("k1", "bad"), ("k2", "a"))
        (bad,) = await letters_of(app, 1)
        task = app.engine.task(0)
        run = rebuild_run.RebuildRun(task.work, task.lanes, task.losses, app.engine, app.engine.projections[AGENT])
        letter, work = task.read(DEAD_LETTERS, bad), task.work.open()
        assert letter is not None
        assert run._bound() == (2, True)
        retry(work, bad, letter)
        assert run._bound() == (2, False)
        work.rollback()


@hypothesis.settings(max_examples=15, deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abcde"), st.sampled_from("uvwxyz")), max_size=60), st.randoms())
def test_rebuilt_rows_are_the_fold_of_the_records(records: list[tuple[str, str]], choice: random.Random) -> None:
    async def check(folder: Path) -> None:
        projected = Projected()
        async with running(make_settings("memory://", folder, partitions=2), [projected.service]) as app:
            await projected.send(app, *records)
            await at_rest(app)
            for task in app.engine.tasks.values():
                for key, _ in list(task.scan(projected.seen)):
                    task.work.open().put(projected.seen, key, choice.choice((None, Seen(("wrong",)), Seen())))
                for value in "uvwxyz":
                    task.work.open().put(projected.counts, value, choice.choice((None, 7)))
                task.work.open().release()
                task.work.commit_soon()
            await at_rest(app)
            await begin(app)
            await ended(app)
            projected.check(app)

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(check(Path(folder)))
