"""Owning and losing partitions: what is open is committed, nobody works on what is lost, a number is never split."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from engine.faust.app import EngineApp
from engine.log.ports import Outgoing, ProducerFenced
from engine.store.store import Store
from engine.work.life import StaleBatch, TaskState
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    KAFKA,
    Seen,
    Tally,
    broker_url,
    hand_fed,
    make_settings,
    process,
    publish,
    read_topic,
    row,
    running,
    start,
    stop,
    wait_until,
)

KEY = "key"


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path / "one")


def keyed(*values: str) -> list[Outgoing]:
    return [(KEY.encode(), value.encode(), ()) for value in values]


# ---- losing a partition


async def test_on_revocation_what_is_open_is_committed_and_the_database_is_let_go(settings: Settings) -> None:
    tally = Tally()
    async with hand_fed(settings, [tally.service], numbers=[0, 1]) as fed:
        task = fed.engine.tasks[0]
        await fed.handle(0, tally.source, Tally.AGENT, tally.handle, *keyed("a", "b"))
        assert task.reached(Tally.AGENT, tally.source.name) == 0
        await fed.engine.revoked()
        assert task.reached(Tally.AGENT, tally.source.name) == 2
        assert await fed.engine.broker.committed([(tally.source.name, 0)]) == {(tally.source.name, 0): 2}
        held = task._rows  # as a stray reference would: the database has to be closed, not merely forgotten
        await fed.assign([1], generation=2)
        assert held is not None
        assert set(fed.engine.tasks) == {1}
        other = Store(fed.engine.store_path(0))  # another process could open it now
        assert other.get(tally.table.storage_key(KEY)) == b'{"values":["a","b"]}'
        other.close()


async def test_on_stop_what_is_open_is_committed(settings: Settings) -> None:
    tally = Tally()
    async with hand_fed(settings, [tally.service]) as fed:
        await fed.handle(0, tally.source, Tally.AGENT, tally.handle, *keyed("a", "b"))
    async with hand_fed(settings, [tally.service]) as again:
        assert again.engine.tasks[0].read(tally.table, KEY) == Seen(("a", "b"))
        assert again.hand.positions[tally.source.name, 0] == 2


async def test_a_revocation_waits_for_a_running_commit(settings: Settings) -> None:
    tally, gate = Tally(), asyncio.Event()
    gate.set()
    async with hand_fed(settings, [tally.service], gate=gate) as fed:
        gate.clear()
        task = fed.engine.tasks[0]
        await fed.handle(0, tally.source, Tally.AGENT, tally.handle, *keyed("a"))
        task.work.ran_dry()
        await asyncio.sleep(0)
        await fed.handle(0, tally.source, Tally.AGENT, tally.handle, *keyed("b"))
        revoking = asyncio.create_task(fed.engine.revoked())
        await asyncio.sleep(0.02)
        assert not revoking.done()
        gate.set()
        await revoking
        assert task.reached(Tally.AGENT, tally.source.name) == 2
        assert not task.life.failed.done()


# ---- batches of a life that is over


async def test_a_batch_of_an_earlier_epoch_is_refused_and_its_records_come_again(settings: Settings) -> None:
    tally = Tally()
    async with hand_fed(settings, [tally.service]) as fed:
        task = fed.engine.tasks[0]
        records = await fed.write(tally.source, 0, keyed("a", "b"))
        late = fed.fetch(0, tally.source, records)
        await fed.engine.revoked()
        with pytest.raises(StaleBatch):
            await process(late, Tally.AGENT, tally.handle)
        await fed.assign([0], generation=2)
        assert fed.engine.tasks[0] is task
        with pytest.raises(StaleBatch):
            await process(late, Tally.AGENT, tally.handle)
        assert fed.hand.positions[tally.source.name, 0] == 0
        await process(fed.fetch(0, tally.source, records), Tally.AGENT, tally.handle)
        await fed.engine.revoked()
        assert task.read(tally.table, KEY) == Seen(("a", "b"))


async def test_a_batch_in_the_middle_of_which_the_partition_is_lost_stops_there(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path, partitions=1, commit_records_max=3)
    tally, gate = Tally(), asyncio.Event()
    gate.set()
    async with hand_fed(settings, [tally.service], gate=gate) as fed:
        task = fed.engine.tasks[0]
        records = await fed.write(tally.source, 0, keyed(*"abcdefgh"))
        gate.clear()
        fetched = fed.fetch(0, tally.source, records)
        handling = asyncio.create_task(process(fetched, Tally.AGENT, tally.handle))
        await wait_until(
            lambda: task.work.positions.get((Tally.AGENT, tally.source.name)) == 6, "two units of work are full"
        )
        revoking = asyncio.create_task(fed.engine.revoked())
        gate.set()
        await revoking
        with pytest.raises(StaleBatch):
            await handling
        assert task.reached(Tally.AGENT, tally.source.name) == 6
        assert task.read(tally.table, KEY) == Seen(tuple("abcdef"))
        await fed.assign([0], generation=2)
        assert fed.hand.positions[tally.source.name, 0] == 6


async def test_a_task_survives_to_the_next_generation_only(settings: Settings) -> None:
    tally = Tally()
    async with hand_fed(settings, [tally.service]) as fed:
        first = fed.engine.tasks[0]
        await fed.engine.revoked()
        await fed.assign([0], generation=2)
        assert fed.engine.tasks[0] is first
        await fed.engine.revoked()
        await fed.assign([0], generation=4)  # somebody else may have owned it in generation 3
        assert fed.engine.tasks[0] is not first
        assert first.life.state is TaskState.CLOSED


# ---- fencing


async def test_a_fenced_task_joins_the_group_anew_instead_of_fencing_back(settings: Settings) -> None:
    tally = Tally()
    async with hand_fed(settings, [tally.service]) as fed:
        task = fed.engine.tasks[0]
        await fed.handle(0, tally.source, Tally.AGENT, tally.handle, *keyed("a"))
        usurper = fed.engine.broker.producer(0)
        await usurper.start()
        task.work.ran_dry()
        await wait_until(lambda: fed.hand.rejoins, "it asks to rejoin")
        assert isinstance(task.life.failed.result(), ProducerFenced)
        assert 0 not in fed.engine.tasks
        await usurper.begin()  # it is still the newest
        await usurper.commit()
        await usurper.close()
        await fed.assign([0], generation=2)
        assert fed.hand.positions[tally.source.name, 0] == 0
        assert fed.engine.tasks[0].read(tally.table, KEY) is None


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_a_worker_that_lost_its_partition_without_knowing_does_no_harm(
    settings: Settings, tmp_path: Path
) -> None:
    tally = Tally()
    # Longer than the other worker may take to start: the zombie must not commit before it is one.
    slow = settings.model_copy(update={"commit_interval": 60.0})
    elsewhere = slow.model_copy(update={"data_dir": tmp_path / "two"})
    async with hand_fed(slow, [tally.service]) as zombie:
        await zombie.handle(0, tally.source, Tally.AGENT, tally.handle, *keyed("a"))
        await zombie.engine.revoked()
        await zombie.assign([0], generation=2)
        records = await zombie.write(tally.source, 0, keyed("b"))
        await process(zombie.fetch(0, tally.source, records), Tally.AGENT, tally.handle)
        async with hand_fed(elsewhere, [tally.service]) as owner:
            assert owner.engine.tasks[0].read(tally.table, KEY) == Seen(("a",))
            assert owner.hand.positions[tally.source.name, 0] <= records[0].offset
            await process(owner.fetch(0, tally.source, records), Tally.AGENT, tally.handle)
            owner.engine.tasks[0].work.ran_dry()
            zombie.engine.tasks[0].work.ran_dry()
            await wait_until(lambda: zombie.hand.rejoins, "the zombie is fenced")
            await owner.engine.revoked()
            assert owner.engine.tasks[0].read(tally.table, KEY) == Seen(("a", "b"))
        written = await _values(owner_settings=elsewhere, tally=tally)
    assert written == ["a", "b"]


async def _values(owner_settings: Settings, tally: Tally) -> list[str]:
    async with running(owner_settings, [tally.service]) as app:
        return [(record.value or b"").decode() for record in await read_topic(app, tally.output)]


# ---- two workers


@asynccontextmanager
async def two_workers(first: Settings, tmp_path: Path, *services: list[Tally]) -> AsyncIterator[list[EngineApp]]:
    """Run workers of one group, each with services of its own, until the block ends; the list may be changed."""
    apps: list[EngineApp] = []
    try:
        for index, tallies in enumerate(services):
            apps.append(await start(worker(first, tmp_path, index), [tally.service for tally in tallies]))
        yield apps
    finally:
        for app in apps:
            await stop(app)


def worker(first: Settings, tmp_path: Path, index: int) -> Settings:
    port = make_settings(first.broker, tmp_path).web_port
    return first.model_copy(update={"data_dir": tmp_path / f"worker-{index}", "web_port": port})


def shared_out(apps: list[EngineApp]) -> bool:
    """Whether every partition number is restored on exactly one worker, and each worker has some."""
    numbers = [app.engine.numbers for app in apps]
    return (
        all(numbers)
        and all(app.engine.is_ready() for app in apps)
        and sorted(n for some in numbers for n in some) == list(range(apps[0].engine.settings.partitions))
    )


def owned_topics(app: EngineApp) -> dict[int, set[str]]:
    owned: dict[int, set[str]] = {}
    for tp in app.consumer.assignment():
        owned.setdefault(tp.partition, set()).add(tp.topic)
    return owned


def rows_of(apps: list[EngineApp], tally: Tally, keys: list[str]) -> dict[str, Seen | None]:
    """The row of each key where its partition is."""
    found: dict[str, Seen | None] = {}
    for key in keys:
        number = apps[0].engine.partition_for(key.encode())
        owners = [app for app in apps if number in app.engine.tasks and app.engine.is_ready()]
        found[key] = row(owners[0], tally.table, key) if len(owners) == 1 else None
    return found


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_partitions_move_between_workers_while_records_flow_and_each_counts_once(
    settings: Settings, tmp_path: Path
) -> None:
    tally, keys = Tally(), [f"key-{number}" for number in range(12)]
    rounds = 0

    async def flow(apps: list[EngineApp]) -> None:
        nonlocal rounds
        while True:
            for key in keys:
                await publish(apps[0], tally.source, key, f"{rounds}".encode())
            rounds += 1
            await asyncio.sleep(0.01)

    async with two_workers(settings, tmp_path, [tally]) as apps:
        flowing = asyncio.create_task(flow(apps))
        try:
            apps.append(await start(worker(settings, tmp_path, 1), [tally.service]))
            await wait_until(lambda: shared_out(apps), "two workers share the partitions")
            seen = rounds
            await wait_until(lambda: rounds > seen + 5, "records flow to both")
            await stop(apps.pop())
            await wait_until(lambda: shared_out(apps), "the first has all partitions again")
            seen = rounds
            await wait_until(lambda: rounds > seen + 5, "records flow to the first")
        finally:
            flowing.cancel()
            await asyncio.wait([flowing])
        # The last round may be incomplete; every key has at least the rounds before it.
        await wait_until(
            lambda: all(r is not None and len(r.values) >= rounds for r in rows_of(apps, tally, keys).values()),
            "everything is handled",
        )
        for found in rows_of(apps, tally, keys).values():
            assert found is not None
            assert list(found.values) == [f"{number}" for number in range(len(found.values))]
        sent: dict[bytes, list[bytes]] = {}
        for record in await read_topic(apps[0], tally.output):
            sent.setdefault(record.key or b"", []).append(record.value or b"")
        for values in sent.values():
            assert values == [b"%d" % number for number in range(len(values))]


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_a_rolling_upgrade_that_adds_a_topic_never_splits_a_number_over_two_workers(
    settings: Settings, tmp_path: Path
) -> None:
    old, new = Tally("old"), Tally("new", agent="tally-new")
    keys = [f"key-{number}" for number in range(12)]
    async with two_workers(settings, tmp_path, [old], [old, new]) as apps:
        await wait_until(lambda: shared_out(apps), "both versions share the partitions")
        for app, topics in zip(apps, ({old.source.name}, {old.source.name, new.source.name}), strict=True):
            assert owned_topics(app) == dict.fromkeys(app.engine.numbers, topics)
        upgraded = apps[1].engine
        for key in keys:
            await publish(apps[1], old.source, key, b"a")
            await publish(apps[1], new.source, key, b"b")
        here = [key for key in keys if upgraded.partition_for(key.encode()) in upgraded.numbers]
        await wait_until(lambda: set(rows_of(apps, old, keys).values()) == {Seen(("a",))}, "the old topic flows")
        await wait_until(lambda: set(rows_of(apps[1:], new, here).values()) == {Seen(("b",))}, "the new topic flows")

        await stop(apps.pop(0))
        apps.append(await start(worker(settings, tmp_path, 0), [old.service, new.service]))
        await wait_until(lambda: shared_out(apps), "both are upgraded")
        both = {old.source.name, new.source.name}
        assert all(owned_topics(app) == dict.fromkeys(app.engine.numbers, both) for app in apps)
        await wait_until(lambda: set(rows_of(apps, new, keys).values()) == {Seen(("b",))}, "nothing was left behind")
        assert rows_of(apps, old, keys) == dict.fromkeys(keys, Seen(("a",)))
