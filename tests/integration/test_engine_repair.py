"""Changelogs that have less than the store of their partition are made whole again when somebody asks for it."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from engine.declare.table import AnyTable
from engine.faust.app import EngineApp
from engine.log.embedded.mark import mark_path
from engine.log.ports import Outgoing, TransactionalProducer, TransportError
from engine.positions.positions import POSITIONS
from engine.store.opening import changelog_fault
from engine.store.repair_rows import FROM_CHANGELOG, FROM_EVENTS, FROM_STORE, REPAIRS, Repair, Source
from engine.work.life import TaskState
from streams.app import create_app
from streams.settings import Settings
from tables.customers import CUSTOMERS
from tests.apps import (
    DURABLE_TRANSPORTS,
    Tally,
    at_rest,
    broker_url,
    caught_up,
    connected,
    make_settings,
    publish,
    row,
    running,
    wait_until,
)
from tests.e2e.processes import ORDERS, Site
from tests.integration.web import check_problem, client_of, find, order, place
from tests.lost_records import delete_topic, remove_before

KEYS = [f"key-{number}" for number in range(6)]
EXPECTED = {key: ["a", "b"] for key in KEYS}


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path / "data")


def stores(settings: Settings) -> Path:
    return settings.data_dir / "stores"


def changelogs(settings: Settings, *tables: AnyTable) -> list[str]:
    return [table.changelog_topic(settings.app_id) for table in tables]


async def fill(settings: Settings, tally: Tally) -> None:
    """Run the service over two values for each key, and stop."""
    async with running(settings, [tally.service]) as app:
        for key in KEYS:
            await publish(app, tally.source, key, b"a", b"b")
        await caught_up(app)


async def shorten(settings: Settings, topics: Iterable[str]) -> None:
    """Remove all records of these topics."""
    async with connected(settings) as broker:
        for topic in topics:
            for number in range(settings.partitions):
                await remove_before(broker, topic, number, await broker.end_offset(topic, number))


@asynccontextmanager
async def started(settings: Settings, services: Collection[Any] | None = None) -> AsyncIterator[EngineApp]:
    """Run an application whose partitions may be refused, once each has started or is refused."""
    app = create_app(settings, services=services)
    app.finalize()
    await app.start()
    try:
        engine = app.engine
        await wait_until(
            lambda: all(
                changelog_fault(number) in engine.faults
                or (number in engine.tasks and engine.tasks[number].life.state is TaskState.RUNNING)
                for number in range(settings.partitions)
            ),
            "all partitions have started or are refused",
        )
        yield app
    finally:
        await app.stop()


async def repaired(app: EngineApp, source: Source, reason: str = "a test", accept_loss: bool = False) -> list[Repair]:
    """Repair every partition, and wait for the outcome."""
    asked = [
        Repair(number, source, "somebody", reason, accept_loss) for number in range(app.engine.settings.partitions)
    ]
    for repair in asked:
        app.engine.repair(repair)
    await wait_until(lambda: all(repair.state in ("done", "refused") for repair in asked), "the repairs are over")
    return asked


async def test_a_new_store_is_restored_from_a_shortened_changelog_that_was_repaired_from_the_store(
    settings: Settings,
) -> None:
    tally = Tally()
    await fill(settings, tally)
    topics = changelogs(settings, tally.table, POSITIONS)
    await shorten(settings, topics)
    async with running(settings, [tally.service]) as app:
        await publish(app, tally.source, KEYS[0], b"c")
        await caught_up(app)
        repairs = await repaired(app, FROM_STORE, "retention was set by mistake")
        assert {tuple(sorted(repair.changelogs)) for repair in repairs} == {tuple(sorted(topics))}
        await wait_until(app.engine.is_ready, "all partitions run again")
        assert app.engine.faults.open() == ()
        await publish(app, tally.source, KEYS[1], b"c")
        await caught_up(app)
    shutil.rmtree(stores(settings))
    expected = EXPECTED | {key: ["a", "b", "c"] for key in KEYS[:2]}
    async with running(settings, [tally.service]) as app:
        assert app.engine.faults.open() == ()
        await tally.check(app, expected)
        assert app.engine.metrics.committed_records == 0, "nothing is processed again"
        noted = [made for task in app.engine.tasks.values() for _, made in task.scan(REPAIRS)]
        assert [(made.by, made.reason, made.source) for made in noted] == [
            ("somebody", "retention was set by mistake", "store")
        ] * settings.partitions


async def test_a_store_that_lacks_removed_records_is_no_better_copy_unless_somebody_accepts_their_loss(
    settings: Settings, tmp_path: Path
) -> None:
    tally = Tally()
    await fill(settings, tally)
    older = shutil.copytree(stores(settings), tmp_path / "older")
    await fill(settings, tally)  # again, which this copy of the stores has not
    (topic,) = changelogs(settings, tally.table)
    await shorten(settings, [topic])
    newer = shutil.move(stores(settings), tmp_path / "newer")
    shutil.copytree(older, stores(settings))
    async with started(settings, [tally.service]) as app:
        for fault in app.engine.faults.open():
            assert "were removed before the store had them" in fault.detail
            assert fault.advice.startswith("start the worker whose data folder has the store")
        refused = await repaired(app, FROM_STORE)
        assert {repair.state for repair in refused} == {"refused"}
        assert all("ask the worker that has a newer store" in repair.detail for repair in refused)
    shutil.rmtree(stores(settings))
    shutil.copytree(newer, stores(settings))  # as the advice has it
    async with running(settings, [tally.service]) as app:
        await tally.check(app, {key: ["a", "b", "a", "b"] for key in KEYS})
    shutil.rmtree(stores(settings))
    shutil.copytree(older, stores(settings))
    async with started(settings, [tally.service]) as app:
        accepted = await repaired(app, FROM_STORE, accept_loss=True)
        assert {repair.state for repair in accepted} == {"done"}
        await wait_until(app.engine.is_ready, "all partitions run again")


async def test_a_changelog_that_was_created_anew_is_written_from_the_store_and_loses_what_only_it_has(
    settings: Settings,
) -> None:
    tally = Tally()
    await fill(settings, tally)
    (topic,) = changelogs(settings, tally.table)
    async with connected(settings) as broker:
        await delete_topic(broker, topic)
        deadline = asyncio.get_running_loop().time() + 20
        while topic in await broker.topics():
            assert asyncio.get_running_loop().time() < deadline
    async with started(settings, [tally.service]) as app:
        for number in range(settings.partitions):
            alien: list[Outgoing] = [(b"alien", b'{"values":["x"]}', ()), (KEYS[0].encode(), b'{"values":["x"]}', ())]
            await app.engine.broker.publish(topic, number, alien)
        repairs = await repaired(app, FROM_STORE)
        assert sum(repair.rows for repair in repairs) == len(KEYS)
        assert all(repair.removed for repair in repairs)
        await wait_until(app.engine.is_ready, "all partitions run again")
        assert app.engine.faults.open() == ()
    shutil.rmtree(stores(settings))
    async with running(settings, [tally.service]) as app:
        await tally.check(app, EXPECTED)
        assert row(app, tally.table, "alien") is None


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
@pytest.mark.parametrize("is_interrupted", [False, True], ids=["at once", "after an interruption"])
async def test_an_older_log_that_was_put_back_is_followed_when_somebody_says_so_and_the_store_is_kept_aside(
    settings: Settings, tmp_path: Path, is_interrupted: bool
) -> None:
    tally = Tally()
    await fill(settings, tally)
    log = settings.data_dir / "log"
    shutil.copytree(log, tmp_path / "log")
    shutil.copy(mark_path(log), tmp_path / "log.mark")
    async with running(settings, [tally.service]) as app:
        for key in KEYS:
            await publish(app, tally.source, key, b"c")
        await caught_up(app)
    shutil.rmtree(log)
    shutil.move(tmp_path / "log", log)
    shutil.move(tmp_path / "log.mark", mark_path(log))
    async with started(settings, [tally.service]) as app:
        assert len(app.engine.faults.open()) == settings.partitions
        make_producer, producers = app.engine.broker.producer, Counter[int]()

        def producer(number: int) -> Any:
            producers[number] += 1
            return Failing(make_producer(number), 0 if is_interrupted and producers[number] == 1 else 1_000_000)

        app.engine.broker.producer = producer  # type: ignore
        repairs = await repaired(app, FROM_CHANGELOG)
        assert {repair.state for repair in repairs} == {"done"}
        await wait_until(app.engine.is_ready, "all partitions run again")
        await tally.check(app, EXPECTED)
        assert sum(1 for task in app.engine.tasks.values() for _ in task.scan(REPAIRS)) == settings.partitions
    assert all(Path(repair.aside).is_dir() and Path(repair.aside).parent == stores(settings) for repair in repairs)


class Failing:
    """A real producer whose commits fail after some of them."""

    def __init__(self, producer: TransactionalProducer, commits: int) -> None:
        self._producer = producer
        self._left = commits

    def __getattr__(self, name: str) -> Any:
        return getattr(self._producer, name)

    async def commit(self) -> Mapping[tuple[str, int], int]:
        """Commit, as long as that is allowed."""
        if self._left == 0:
            raise TransportError("the broker has gone")
        self._left -= 1
        return await self._producer.commit()


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
@pytest.mark.parametrize("commits", [0, 1, 2])
async def test_a_store_whose_repair_was_interrupted_is_refused_until_the_repair_is_asked_for_again(
    settings: Settings, commits: int
) -> None:
    tally = Tally()
    await fill(settings, tally)
    await shorten(settings, changelogs(settings, tally.table, POSITIONS))
    async with running(settings, [tally.service]) as app:
        make_producer = app.engine.broker.producer
        app.engine.broker.producer = lambda number: Failing(make_producer(number), commits)  # type: ignore
        failures = app.engine.metrics.partition_failures
        app.engine.repair(Repair(0, FROM_STORE, "somebody", ""))
        await wait_until(lambda: app.engine.metrics.partition_failures > failures, "the repair has failed")
    async with started(settings, [tally.service]) as app:
        assert "was being written anew" in next(f.detail for f in app.engine.faults.open() if f.partition == 0)
        assert {repair.state for repair in await repaired(app, FROM_STORE)} == {"done"}
        await wait_until(app.engine.is_ready, "all partitions run again")
    shutil.rmtree(stores(settings))
    async with running(settings, [tally.service]) as app:
        await tally.check(app, EXPECTED)


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
@pytest.mark.parametrize("source", [FROM_CHANGELOG, FROM_EVENTS])
async def test_a_store_that_is_the_only_copy_is_not_given_up_even_when_somebody_asks_for_it(
    settings: Settings, source: Source
) -> None:
    tally = Tally()
    await fill(settings, tally)
    await shorten(settings, changelogs(settings, tally.table))
    async with running(settings, [tally.service]) as app:
        repairs = await repaired(app, source)
        assert all("the only copy" in repair.detail for repair in repairs)
        await wait_until(app.engine.is_ready, "all partitions run again")
        await tally.check(app, EXPECTED)


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
@pytest.mark.parametrize("source", [FROM_STORE, FROM_CHANGELOG, FROM_EVENTS])
async def test_without_a_store_and_without_positions_no_repair_makes_agents_process_everything_again(
    settings: Settings, source: Source
) -> None:
    tally = Tally()
    await fill(settings, tally)
    await shorten(settings, changelogs(settings, POSITIONS))
    shutil.rmtree(stores(settings))
    async with started(settings, [tally.service]) as app:
        repairs = await repaired(app, source)
        assert {repair.state for repair in repairs} == {"refused"}
        assert app.engine.metrics.committed_records == 0
        assert not app.engine.is_ready()


# ---- over HTTP and from the command line


async def command(app: EngineApp, folder: Path, *arguments: str, status: int = 0) -> str:
    """What `orders` prints."""
    done = await asyncio.to_thread(
        subprocess.run,
        [*ORDERS, *arguments],
        env=Site(folder, app.engine.settings.web_port).environment({}),
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert done.returncode == status, done.stdout + done.stderr
    return done.stdout + done.stderr


async def test_a_repair_is_asked_for_at_the_command_line_while_the_worker_runs(tmp_path: Path) -> None:
    settings = make_settings("embedded://", tmp_path / "data")
    async with running(settings) as app, client_of(app) as client:
        await place(client, order("c-1", "o-1"))
        await at_rest(app)
    await shorten(settings, changelogs(settings, *app.engine.tables.values()))
    async with running(settings) as app, client_of(app) as client:
        assert "orders repair" in check_problem(await client.get("/healthz"), 503)["detail"]
        said = await command(app, tmp_path, "repair", "--all", "--from", "store", "--reason", "a test")
        assert "partition 0: " in said
        assert "are whole again" in said
        assert (await client.get("/healthz")).status_code == 200
        assert (await find(client, "/partitions/0/repair"))["state"] == "done"
        said = await command(app, tmp_path, "repair", "--all", "--from", "store")
        assert "partition 1: nothing to repair" in said
        assert "nothing to repair" in await command(app, tmp_path, "repair", "0", "--from", "store", status=1)
        await command(app, tmp_path, "repair", "9", "--from", "store", status=1)
    shutil.rmtree(stores(settings))
    async with running(settings) as app, client_of(app) as client:
        assert (await client.get("/orders/o-1")).status_code == 200
        assert (await client.get("/healthz")).status_code == 200


async def test_a_projection_without_store_and_changelog_is_made_anew_from_its_events(tmp_path: Path) -> None:
    settings = make_settings("embedded://", tmp_path / "data")
    async with running(settings) as app, client_of(app) as client:
        await place(client, order("c-1", "o-1"))
        await at_rest(app)
        before = await find(client, "/customers/c-1")
    await shorten(settings, changelogs(settings, CUSTOMERS))
    shutil.rmtree(stores(settings))
    async with started(settings) as app, client_of(app) as client:
        assert "--from events" in check_problem(await client.get("/healthz"), 503)["detail"]
        assert "was removed" in check_problem(await client.get("/readyz"), 503)["detail"]
        await command(app, tmp_path, "repair", "--all", "--from", "events")
        assert await find(client, "/customers/c-1") == before
        assert (await client.get("/healthz")).status_code == 200
        assert (await client.get("/readyz")).status_code == 200


async def test_orders_without_store_and_changelog_are_not_made_up_from_what_is_left(tmp_path: Path) -> None:
    settings = make_settings("embedded://", tmp_path / "data")
    async with running(settings) as app, client_of(app) as client:
        await place(client, order("c-1", "o-1"))
        await at_rest(app)
    await shorten(settings, [f"{settings.app_id}-orders-changelog"])
    shutil.rmtree(stores(settings))
    async with started(settings) as app:
        said = await command(app, tmp_path, "repair", "0", "--from", "events", status=1)
        assert "orders" in said
        assert "cannot be made anew from events" in said
        assert not app.engine.is_ready()
