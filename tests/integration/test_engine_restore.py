"""A partition is restored from its changelogs to their very end, and keeps its store where they have less."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest

from engine.declare.unit_of_work import UnitOfWork
from engine.faust.app import EngineApp
from engine.installation.mark import INSTALLATION_TOPIC
from engine.log.embedded.broker import EmbeddedBroker
from engine.log.partitioner import partition_for
from engine.log.ports import Reader, Record
from engine.positions.positions import POSITIONS
from engine.store.opening import changelog_fault
from engine.store.store import Store
from engine.work.life import TaskState
from streams.app import create_app
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    HandFed,
    Seen,
    Tally,
    broker_url,
    caught_up,
    connected,
    hand_fed,
    make_settings,
    publish,
    read_committed,
    row,
    running,
    wait_until,
)
from tests.lost_records import delete_topic, remove_before

KEYS = [f"key-{number}" for number in range(6)]
EXPECTED = {key: ["a", "b"] for key in KEYS}


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


async def fill(settings: Settings, tally: Tally) -> None:
    """Run the service over two values for each key, and stop."""
    async with running(settings, [tally.service]) as app:
        for key in KEYS:
            await publish(app, tally.source, key, b"a", b"b")
        await caught_up(app)


def stores(settings: Settings) -> Path:
    return settings.data_dir / "stores"


async def create_anew(settings: Settings, topic: str) -> None:
    """Delete a topic, as somebody with the right to do so might; the next start creates it."""
    async with connected(settings) as broker:
        await delete_topic(broker, topic)
        deadline = asyncio.get_running_loop().time() + 20
        while topic in await broker.topics():
            assert asyncio.get_running_loop().time() < deadline


async def shorten(settings: Settings, topic: str, numbers: Iterable[int]) -> None:
    """Remove all records of these partitions, as retention or DeleteRecords does."""
    async with connected(settings) as broker:
        for number in numbers:
            await remove_before(broker, topic, number, await broker.end_offset(topic, number))


@asynccontextmanager
async def refusing(settings: Settings, tally: Tally, numbers: Iterable[int]) -> AsyncIterator[EngineApp]:
    """Run an application of which these partitions do not start; all others do."""
    app = create_app(settings, services=[tally.service])
    app.finalize()
    await app.start()
    try:
        engine = app.engine
        await wait_until(
            lambda: all(changelog_fault(number) in engine.faults for number in numbers), "all of them are refused"
        )
        others = set(range(settings.partitions)) - set(numbers)
        await wait_until(
            lambda: all(number in engine.tasks and engine.tasks[number].life.is_running() for number in others),
            "the others run",
        )
        assert not engine.is_ready()
        yield app
    finally:
        await app.stop()


async def test_a_lost_store_is_restored_from_the_changelog(settings: Settings) -> None:
    tally = Tally()
    await fill(settings, tally)
    shutil.rmtree(stores(settings))
    async with running(settings, [tally.service]) as app:
        await tally.check(app, EXPECTED)
        assert app.engine.metrics.committed_records == 0
        await publish(app, tally.source, KEYS[0], b"c")
        await caught_up(app)
        await tally.check(app, EXPECTED | {KEYS[0]: ["a", "b", "c"]})


async def test_a_store_that_missed_commits_catches_up_from_its_position(settings: Settings, tmp_path: Path) -> None:
    tally = Tally()
    await fill(settings, tally)
    shutil.copytree(stores(settings), tmp_path / "earlier")
    async with running(settings, [tally.service]) as app:
        for key in KEYS:
            await publish(app, tally.source, key, b"c")
        await caught_up(app)
    shutil.rmtree(stores(settings))
    shutil.move(tmp_path / "earlier", stores(settings))
    async with running(settings, [tally.service]) as app:
        await tally.check(app, {key: ["a", "b", "c"] for key in KEYS})
        # Only what was missing: a row for each key and a position for each partition that has keys, not the rest.
        applied = sum(task.progress.applied for task in app.engine.tasks.values())
        used = {app.engine.partition_for(key.encode()) for key in KEYS}
        assert len(KEYS) + len(used) <= applied <= 2 * len(KEYS)
        assert app.engine.metrics.committed_records == 0


async def test_a_restore_gets_past_an_aborted_transaction_at_the_end_of_the_changelog(settings: Settings) -> None:
    tally = Tally()
    await fill(settings, tally)
    changelog = tally.table.changelog_topic(settings.app_id)
    async with connected(settings) as broker:
        for number in range(settings.partitions):
            producer = broker.producer(number)
            await producer.start()
            await producer.begin()
            await producer.send({(changelog, number): [(KEYS[0].encode(), b'{"values":["aborted"]}', ())]})
            await producer.close()
    shutil.rmtree(stores(settings))
    async with running(settings, [tally.service]) as app:
        await tally.check(app, EXPECTED)


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
async def test_a_restore_gets_to_the_end_of_a_compacted_changelog(settings: Settings) -> None:
    tally = Tally()
    drop = b"gone"

    def handle(record: Record, work: UnitOfWork) -> str:
        if record.value == drop:
            work.delete(tally.table, (record.key or b"").decode())
            return "value"
        return Tally.handle(tally, record, work)

    tally.handle = handle  # type: ignore[method-assign]
    async with running(settings, [tally.service]) as app:
        for value in (b"a", b"b"):
            for key in KEYS:
                await publish(app, tally.source, key, value)
                await caught_up(app)
        await publish(app, tally.source, KEYS[-1], drop)
        await caught_up(app)
        assert isinstance(app.engine.broker, EmbeddedBroker)
        changelog = tally.table.changelog_topic(settings.app_id)
        before = [await read_committed(app.engine.broker, changelog, n) for n in range(settings.partitions)]
        for _ in app.engine.broker.log.maintain(min_dirty_ratio=0):
            await asyncio.sleep(0)
        after = [await read_committed(app.engine.broker, changelog, n) for n in range(settings.partitions)]
        assert sum(map(len, after)) < sum(map(len, before))
    shutil.rmtree(stores(settings))
    async with running(settings, [tally.service]) as app:
        assert {key: row(app, tally.table, key) for key in KEYS} == {
            key: Seen(("a", "b")) if key != KEYS[-1] else None for key in KEYS
        }


# ---- stores that cannot be trusted


def rows_of(settings: Settings, tally: Tally) -> dict[str, Seen]:
    """What the stores of a stopped application have."""
    found: dict[str, Seen] = {}
    for number in range(settings.partitions):
        store = Store(stores(settings) / str(number))
        prefix = tally.table.prefix
        found |= {k.removeprefix(prefix).decode(): tally.table.decode_row(v) for k, v in store.scan(prefix)}
        store.close()
    return found


SEEN = {key: Seen(("a", "b")) for key in KEYS}


async def test_a_store_that_is_ahead_of_its_changelog_is_kept_and_its_partition_does_not_start(
    settings: Settings,
) -> None:
    tally = Tally()
    await fill(settings, tally)
    changelog = tally.table.changelog_topic(settings.app_id)
    async with connected(settings) as broker:  # as if the broker had lost its newest records
        for number in range(settings.partitions):
            store = Store(stores(settings) / str(number))
            mark, end = store.mark(changelog), await broker.end_offset(changelog, number)
            store.write((), {changelog: msgspec.structs.replace(mark, position=end + 1)})
            store.close()
    async with refusing(settings, tally, range(settings.partitions)) as app:
        assert "the log has lost records" in app.engine.faults.open()[0].detail
    assert rows_of(settings, tally) == SEEN


async def test_a_store_of_a_changelog_that_was_created_anew_is_kept_and_its_partition_does_not_start(
    settings: Settings,
) -> None:
    tally = Tally()
    await fill(settings, tally)
    await create_anew(settings, tally.table.changelog_topic(settings.app_id))
    for _ in range(2):  # neither at the first start nor at the next one
        async with refusing(settings, tally, range(settings.partitions)) as app:
            assert "deleted and created anew" in app.engine.faults.open()[0].detail
        assert rows_of(settings, tally) == SEEN


async def test_a_store_is_told_from_one_of_an_earlier_changelog_with_as_many_records(
    settings: Settings, tmp_path: Path
) -> None:
    tally = Tally()
    await fill(settings, tally)
    shutil.move(stores(settings), tmp_path / "earlier")
    await create_anew(settings, tally.table.changelog_topic(settings.app_id))
    async with running(settings, [tally.service]) as app:
        # As many records as before, so that the ends alone do not tell the changelogs apart.
        for key in KEYS:
            await publish(app, tally.source, key, b"x", b"y", b"z")
        await caught_up(app)
    shutil.rmtree(stores(settings))
    shutil.move(tmp_path / "earlier", stores(settings))
    async with refusing(settings, tally, range(settings.partitions)):
        pass
    assert rows_of(settings, tally) == SEEN


async def test_a_store_goes_on_when_the_beginnings_of_its_changelogs_were_removed_and_a_fault_says_so(
    settings: Settings,
) -> None:
    tally = Tally()
    await fill(settings, tally)
    for table in (tally.table, POSITIONS):
        await shorten(settings, table.changelog_topic(settings.app_id), range(settings.partitions))
    for value in ("c", "d"):
        async with running(settings, [tally.service]) as app:
            faults = app.engine.faults.open()
            assert [fault.partition for fault in sorted(faults, key=lambda f: f.partition or 0)] == list(
                range(settings.partitions)
            )
            assert all("only copy of its rows" in fault.detail for fault in faults)
            assert app.engine.metrics.committed_records == 0, "nothing is processed again"
            await publish(app, tally.source, KEYS[0], value.encode())
            await caught_up(app)
    async with running(settings, [tally.service]) as app:
        await tally.check(app, EXPECTED | {KEYS[0]: ["a", "b", "c", "d"]})


@pytest.mark.parametrize("whose", ["the table's", "the positions'"])
async def test_without_a_store_a_partition_whose_changelog_lost_its_beginning_does_not_start_and_others_do(
    settings: Settings, whose: str
) -> None:
    tally = Tally()
    await fill(settings, tally)
    changelog = (tally.table if whose == "the table's" else POSITIONS).changelog_topic(settings.app_id)
    number = partition_for(KEYS[0].encode(), settings.partitions)
    await shorten(settings, changelog, [number])
    shutil.rmtree(stores(settings))
    async with refusing(settings, tally, [number]) as app:
        (fault,) = app.engine.faults.open()
        assert f"the beginning of {changelog}/{number} was removed" in fault.detail
        flowing = next(key for key in KEYS if app.engine.partition_for(key.encode()) != number)
        assert row(app, tally.table, flowing) == Seen(("a", "b"))
        await wait_until(lambda: app.engine.metrics.partition_failures, "its first start has ended")
        await asyncio.sleep(0.3)
        assert app.engine.metrics.partition_failures == 1, "it is not tried again and again"


async def test_a_store_behind_by_more_than_half_of_the_tombstones_retention_is_restored_anew(
    settings: Settings, tmp_path: Path
) -> None:
    tally = Tally()
    await fill(settings, tally)
    shutil.copytree(stores(settings), tmp_path / "earlier")
    async with running(settings, [tally.service]) as app:
        await publish(app, tally.source, KEYS[0], b"c")
        await caught_up(app)
    shutil.rmtree(stores(settings))
    shutil.move(tmp_path / "earlier", stores(settings))
    later = settings.model_copy(update={"delete_retention": 1e-6})
    async with running(later, [tally.service]) as app:
        behind = app.engine.task(app.engine.partition_for(KEYS[0].encode()))
        keys_of_it = [key for key in KEYS if app.engine.partition_for(key.encode()) == behind.number]
        assert behind.progress.applied >= len(keys_of_it) + 2, "all its rows, not just those of the last record"
        await tally.check(app, EXPECTED | {KEYS[0]: ["a", "b", "c"]})
        others = [task for task in app.engine.tasks.values() if task is not behind]
        assert [task.progress.applied for task in others] == [0] * len(others), "nothing was missed there"


# ---- from where to go on


@pytest.mark.parametrize("settings", ["memory"], indirect=True)
async def test_the_owner_before_is_fenced_before_the_changelog_is_read(settings: Settings) -> None:
    # Otherwise it could commit behind the end that the restore has seen.
    tally, order = Tally(), list[str]()
    fed = HandFed(settings, [tally.service])
    broker = fed.engine.broker
    make_producer, make_reader = broker.producer, broker.reader
    broker.producer = lambda number: Noting(make_producer(number), "start", order)  # type: ignore

    def reader(number: int, topics: Sequence[str]) -> Any:
        made = make_reader(number, topics)
        return made if topics == [INSTALLATION_TOPIC] else Noting(made, "bounds", order)

    broker.reader = reader  # type: ignore
    await fed.start([0])
    assert order[:2] == ["start", "bounds"]
    await fed.engine.stop()


class Noting:
    """A real producer or reader that notes when one of its methods was through."""

    def __init__(self, real: Any, method: str, order: list[str]) -> None:
        self._real = real
        self._method = method
        self._order = order

    def __getattr__(self, name: str) -> Any:
        if name != self._method:
            return getattr(self._real, name)

        async def call() -> Any:
            result = await getattr(self._real, name)()
            self._order.append(name)
            return result

        return call


@pytest.mark.parametrize("settings", ["memory"], indirect=True)
async def test_no_records_are_taken_before_the_transport_knows_where_to_go_on(settings: Settings) -> None:
    # Otherwise a task takes records from where its predecessor's fetches had got to, and skips what was not committed.
    tally = Tally()
    async with hand_fed(settings, [tally.service]) as fed:
        await fed.handle(0, tally.source, Tally.AGENT, tally.handle, (b"key", b"a", ()))
        for _ in range(3):
            before = fed.engine.tasks[0]
            before.life.fail(OSError("the disk is full"))
            fed.hand.positions.clear()
            while (task := fed.engine.task_for(tally.source.name, 0)) is None or task is before:
                await asyncio.sleep(0)
            assert fed.hand.positions == {(tally.source.name, 0): 0}


# ---- in the background


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
async def test_a_partition_that_cannot_start_is_counted_and_starts_when_the_cause_is_gone(settings: Settings) -> None:
    tally = Tally()
    await fill(settings, tally)
    app = create_app(settings, services=[tally.service])
    number = app.engine.partition_for(KEYS[0].encode())
    in_the_way = stores(settings) / str(number)
    shutil.rmtree(in_the_way)
    in_the_way.write_text("a file is where the store should be")
    app.finalize()
    await app.start()
    try:
        metrics = app.engine.metrics
        await wait_until(lambda: metrics.partition_failures > 3, "the partition has failed to start again and again")
        assert metrics.commit_failures == 0
        in_the_way.unlink()
        await wait_until(app.engine.is_ready, "it starts")
        assert row(app, tally.table, KEYS[0]) == Seen(("a", "b"))
    finally:
        await app.stop()


async def test_a_partition_that_cannot_be_restored_yet_does_not_hold_up_the_others(settings: Settings) -> None:
    tally, gate = Tally(), asyncio.Event()
    await fill(settings, tally)
    shutil.rmtree(stores(settings))
    app = create_app(settings, services=[tally.service])
    engine = app.engine
    held = engine.partition_for(KEYS[0].encode())
    flowing = next(key for key in KEYS if engine.partition_for(key.encode()) != held)
    make_reader = engine.broker.reader

    def reader(number: int, topics: Any) -> Any:
        made = make_reader(number, topics)
        return HeldReader(made, gate) if number == held else made

    engine.broker.reader = reader  # type: ignore
    app.finalize()
    await app.start()
    try:
        number = engine.partition_for(flowing.encode())
        await wait_until(
            lambda: number in engine.tasks and engine.tasks[number].life.is_running(),
            "another is restored",
        )
        await publish(app, tally.source, KEYS[0], b"c")
        await publish(app, tally.source, flowing, b"c")
        end = await engine.broker.end_offset(tally.source.name, number)
        await wait_until(lambda: engine.tasks[number].reached(Tally.AGENT, tally.source.name) >= end, "it flows")
        assert row(app, tally.table, flowing) == Seen(("a", "b", "c"))
        assert not engine.is_ready()
        assert engine.tasks[held].life.state is TaskState.RESTORING
        gate.set()
        await wait_until(engine.is_ready, "the held one is restored too")
        await caught_up(app)
        await tally.check(app, EXPECTED | {KEYS[0]: ["a", "b", "c"], flowing: ["a", "b", "c"]})
    finally:
        gate.set()
        await app.stop()


class HeldReader:
    """A real reader that waits until the test lets it read."""

    def __init__(self, reader: Reader, gate: asyncio.Event) -> None:
        self._reader = reader
        self._gate = gate

    def __getattr__(self, name: str) -> Any:
        return getattr(self._reader, name)

    async def fetch(self) -> Any:
        """Read once the gate is open."""
        await self._gate.wait()
        return await self._reader.fetch()
