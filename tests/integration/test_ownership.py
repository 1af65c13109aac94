"""One owner: topics belong to one application and installation, and move only on purpose."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

import msgspec
import pytest

from engine.declare.service import Service
from engine.faust.app import EngineApp
from engine.installation import ownership as ownership_module
from engine.installation.adopting import Adoption
from engine.installation.folder import FILE, Remembered
from engine.installation.mark import INSTALLATION_TOPIC, Mark, NotTheOwner, Release, release_of
from engine.installation.ownership import Ownership
from engine.installation.unmarked import unmarked_applications
from engine.log.partitioner import partition_for
from engine.log.ports import Broker
from engine.positions.positions import POSITIONS
from streams.app import create_app
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    KAFKA,
    Tally,
    broker_url,
    caught_up,
    connected,
    hand_fed,
    make_settings,
    publish,
    running,
    unique,
    wait_until,
)
from tests.kafka import unused_port

REASON = "the machine before is gone"
RELEASE = release_of(Settings.application)


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path / "data", app_id=unique("shop"))


@pytest.fixture
def tally() -> Tally:
    return Tally()


def as_application(settings: Settings, app_id: str) -> Settings:
    """The same under another application id, as when an operator renames it."""
    return settings.model_copy(update={"app_id": app_id})


async def refusal_of(settings: Settings, services: Iterable[Service], release: Release | None = None) -> str:
    """Start an application that must be refused, and say with which words."""
    app = create_app(settings, services=services)
    app.engine.ownership.release = release or release_of(settings.application)
    app.finalize()
    with pytest.raises(NotTheOwner) as refused:
        await app.start()
    await app.stop()
    await app.engine.stop()
    assert app.engine.fatal == str(refused.value)
    assert "\n" not in app.engine.fatal
    return app.engine.fatal


async def marks_in(settings: Settings) -> dict[str, Mark]:
    """The marks in the log of these settings."""
    async with connected(settings) as broker, ownership_of(settings, broker, ()) as ownership:
        return dict(await ownership.marks.read())


@asynccontextmanager
async def ownership_of(settings: Settings, broker: Broker, services: Iterable[Service]) -> AsyncIterator[Ownership]:
    """What `orders adopt` and the doctor know without a worker."""
    ownership = create_app(settings, services=services).engine.ownership.of(broker)
    try:
        yield ownership
    finally:
        await ownership.stop()


async def adopt(settings: Settings, tally: Tally, even_if_alive: bool = False) -> tuple[Mark, bool]:
    """What `orders adopt` does."""
    async with connected(settings) as broker, ownership_of(settings, broker, [tally.service]) as ownership:
        adoption = Adoption(ownership, broker, {Tally.AGENT: tally.source.name})
        return await adoption.adopt(REASON, even_if_alive=even_if_alive)


async def forget_mark(settings: Settings) -> None:
    """Leave a log as a release without marks would have: no mark, and nothing in the data folder."""
    async with connected(settings) as broker:
        await broker.publish(INSTALLATION_TOPIC, 0, [(settings.app_id.encode(), None, ())])
    (settings.data_dir / "stores" / FILE).unlink()


async def process(app: EngineApp, tally: Tally, *values: bytes) -> None:
    """Write values, and wait until they are processed."""
    await publish(app, tally.source, "key", *values)
    await caught_up(app, Tally.AGENT)


# ---- the mark


async def test_the_first_start_marks_the_topics_it_writes_and_later_ones_find_themselves(
    settings: Settings, tally: Tally
) -> None:
    async with running(settings, [tally.service]) as app:
        first = app.engine.ownership.mark
    assert first is not None
    assert first.topics == (tally.output.name,)
    assert (await marks_in(settings))[settings.app_id] == first
    remembered = msgspec.json.decode((settings.data_dir / "stores" / FILE).read_bytes(), type=Remembered)
    assert remembered == Remembered(settings.app_id, first.installation)
    async with running(settings, [tally.service]) as app:
        assert app.engine.ownership.mark == first


async def test_a_log_of_a_release_without_marks_gets_its_mark_at_the_first_start(
    settings: Settings, tally: Tally
) -> None:
    async with running(settings, [tally.service]) as app:
        await process(app, tally, b"a")
    await forget_mark(settings)
    async with running(settings, [tally.service]) as app:
        await process(app, tally, b"b")
        await tally.check(app, {"key": ["a", "b"]})
    assert settings.app_id in await marks_in(settings)


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_workers_that_start_at_the_same_time_write_one_mark(settings: Settings, tally: Tally) -> None:
    workers = [settings.model_copy(update={"data_dir": settings.data_dir / str(number)}) for number in range(3)]
    async with connected(settings) as broker:
        claims = [create_app(worker, services=[tally.service]).engine.ownership.of(broker) for worker in workers]
        await asyncio.gather(*(claim.claim() for claim in claims))
        assert len({claim.mark for claim in claims}) == 1
        await asyncio.gather(*(claim.stop() for claim in claims))


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_of_applications_that_start_at_the_same_time_one_gets_the_topics(
    settings: Settings, tally: Tally
) -> None:
    async with connected(settings) as broker:
        claims = [
            create_app(
                as_application(settings, unique("shop")).model_copy(update={"data_dir": settings.data_dir / str(n)}),
                services=[tally.service],
            ).engine.ownership.of(broker)
            for n in range(3)
        ]
        outcomes = await asyncio.gather(*(claim.claim() for claim in claims), return_exceptions=True)
        assert sorted(type(outcome).__name__ for outcome in outcomes) == ["NoneType", "NotTheOwner", "NotTheOwner"]
        await asyncio.gather(*(claim.stop() for claim in claims))


async def test_a_mark_that_was_removed_under_a_worker_is_written_again(settings: Settings, tally: Tally) -> None:
    async with running(settings, [tally.service]) as app:
        ownership = app.engine.ownership
        await app.engine.broker.publish(INSTALLATION_TOPIC, 0, [(settings.app_id.encode(), None, ())])
        await ownership.confirm()
        assert ownership.mark is not None
        assert (await ownership.marks.read())[settings.app_id].installation == ownership.mark.installation


# ---- who is refused


async def test_another_application_id_is_refused_and_nothing_is_processed_twice(
    settings: Settings, tally: Tally
) -> None:
    other = as_application(settings, unique("other"))
    async with running(settings, [tally.service]) as app:
        await process(app, tally, b"a")
    shutil.rmtree(settings.data_dir / "stores")  # as on another machine
    said = await refusal_of(other, [tally.service])
    for named in (settings.app_id, other.app_id, tally.output.name, "ORDERS_APP_ID", "orders adopt --reason TEXT"):
        assert named in said
    async with connected(settings) as broker:
        assert not [name for name in await broker.topics() if name.startswith(other.app_id) and "changelog" in name]
    async with running(settings, [tally.service]) as app:
        await process(app, tally, b"b")
        await tally.check(app, {"key": ["a", "b"]})


async def test_another_application_id_is_refused_where_the_present_one_has_no_mark_yet(
    settings: Settings, tally: Tally
) -> None:
    other = as_application(settings, unique("other"))
    async with running(settings, [tally.service]) as app:
        await process(app, tally, b"a")
    await forget_mark(settings)
    # Only topics that are processed are found in positions, so that the output has to be one.
    reader = Service("reader", topics=(tally.source,))
    said = await refusal_of(other, [tally.service, reader])
    assert settings.app_id in said
    assert "has written no mark yet" in said
    async with connected(settings) as broker:
        assert await unmarked_applications(broker, {other.app_id}, {tally.source.name}) == {
            settings.app_id: {tally.source.name}
        }


async def test_an_application_that_only_reads_the_topics_of_another_is_not_refused(
    settings: Settings, tally: Tally, tmp_path: Path
) -> None:
    reading = Tally("reading")
    reading.source = tally.output
    reading.service.agents[Tally.AGENT].topic = tally.output
    async with running(settings, [tally.service]) as app:
        await process(app, tally, b"a")
    if settings.transport == "embedded":
        return  # one worker holds the folder, and its stores are those of one application
    other = make_settings(settings.broker, tmp_path / "other", app_id=unique("reader"))
    async with running(other, [reading.service]) as app:
        await caught_up(app, Tally.AGENT)
        await reading.check(app, {"key": ["a"]})


async def test_stores_of_another_application_are_refused(settings: Settings, tally: Tally) -> None:
    other, others_tally = as_application(settings, unique("other")), Tally()
    async with running(settings, [tally.service]):
        pass
    said = await refusal_of(other, [others_tally.service])
    for named in (settings.app_id, other.app_id, "ORDERS_DATA_DIR"):
        assert named in said


async def test_stores_of_another_installation_are_refused_until_this_one_is_made_the_owner(
    settings: Settings, tally: Tally, tmp_path: Path
) -> None:
    elsewhere = settings.model_copy(update={"broker": "embedded://", "data_dir": tmp_path / "elsewhere"})
    for each in (elsewhere, settings):
        async with running(each, [tally.service]) as app:
            await process(app, tally, b"a")
    stores = settings.data_dir / "stores"
    shutil.rmtree(stores)
    shutil.copytree(elsewhere.data_dir / "stores", stores)
    said = await refusal_of(settings, [tally.service])
    (before,) = [mark for app_id, mark in (await marks_in(settings)).items() if app_id == settings.app_id]
    (copied,) = (await marks_in(elsewhere)).values()
    for named in (before.installation, copied.installation, str(stores), "orders adopt --reason TEXT"):
        assert named in said

    adopted, has_changed = await adopt(settings, tally)
    assert has_changed
    assert adopted.installation == copied.installation
    assert [(move.from_installation, move.reason) for move in adopted.moves] == [(before.installation, REASON)]
    assert adopted.moves[0].by.count("@") == 1
    assert await adopt(settings, tally) == (adopted, False)
    for store in stores.glob("[0-9]*"):  # they were made from another log, so that the worker would not use them
        store.rename(tmp_path / f"aside-{store.name}")
    async with running(settings, [tally.service]) as app:
        await process(app, tally, b"b")
        await tally.check(app, {"key": ["a", "b"]})


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)  # the embedded log itself does not open without its files
async def test_stores_whose_log_is_gone_are_not_taken_for_a_new_installation(
    settings: Settings, tally: Tally, tmp_path: Path
) -> None:
    elsewhere = make_settings("embedded://", tmp_path / "elsewhere", app_id=settings.app_id)
    async with running(elsewhere, [tally.service]) as app:
        await process(app, tally, b"a")
    shutil.copytree(elsewhere.data_dir / "stores", settings.data_dir / "stores")
    said = await refusal_of(settings, [tally.service])
    assert "changelogs are not there" in said
    with pytest.raises(NotTheOwner, match="changelogs are not there"):
        await adopt(settings, tally)
    (settings.data_dir / "stores").rename(tmp_path / "aside")  # the advice
    async with running(settings, [tally.service]) as app:
        await process(app, tally, b"b")


async def test_a_release_that_may_not_run_beside_a_newer_one_is_refused_also_while_it_runs(
    settings: Settings, tally: Tally
) -> None:
    newer, next_one = Release("7.0", 7, 5), Release("6.0", 6, 5)
    async with (
        running(settings, [tally.service]) as app,
        ownership_of(settings, app.engine.broker, [tally.service]) as ownership,
    ):
        ownership.release = next_one._replace(oldest_beside=1)
        await ownership.claim()
        await app.engine.ownership.confirm()  # it may run beside that one
        ownership.release = newer._replace(oldest_beside=3)
        await ownership.claim()
        with pytest.raises(NotTheOwner, match="level 7"):
            await app.engine.ownership.confirm()
        assert app.engine.fatal is not None
    said = await refusal_of(settings, [tally.service])
    for named in (release_of(Settings.application).name, "7.0", "level 3"):
        assert named in said


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_a_release_waits_until_workers_have_ended_beside_which_it_may_not_run(
    settings: Settings, tally: Tally, tmp_path: Path
) -> None:
    newer = Release("9.0", 9, 8)
    beside = settings.model_copy(update={"data_dir": tmp_path / "other", "web_port": unused_port()})
    async with running(settings, [tally.service]):
        said = await refusal_of(beside, [tally.service], newer)
    for named in (release_of(Settings.application).name, "9.0", "level 8", "Stop all of them"):
        assert named in said
    async with connected(settings) as broker:
        await wait_until_gone(broker, settings.app_id)
        async with ownership_of(beside, broker, [tally.service]) as ownership:
            ownership.release = newer
            await ownership.claim()
            assert ownership.mark is not None
            assert ownership.mark.level == newer.level


async def wait_until_gone(broker: Broker, group: str) -> None:
    """Wait until a consumer group has no members."""
    async with asyncio.timeout(30):
        while await broker.members(group):
            await asyncio.sleep(0.05)


# ---- moving the ownership


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_a_worker_ends_when_its_topics_are_adopted_and_its_late_commit_does_not_count(
    settings: Settings, tally: Tally, tmp_path: Path
) -> None:
    gate = asyncio.Event()
    gate.set()
    number = partition_for(b"key", settings.partitions)
    async with hand_fed(settings, [tally.service], [number], gate) as fed:
        gate.clear()
        engine = fed.engine
        await fed.handle(number, tally.source, Tally.AGENT, tally.handle, (b"key", b"late", ()))
        await wait_until(lambda: engine.tasks[number].work.is_committing, "the commit is under way")
        adopted, _ = await adopt(settings.model_copy(update={"data_dir": tmp_path / "new"}), tally)
        gate.set()
        await wait_until(lambda: engine.fatal, "the worker ends")
        for named in (settings.app_id, adopted.installation, REASON, "orders adopt --reason TEXT"):
            assert named in str(engine.fatal)
    new = settings.model_copy(update={"data_dir": tmp_path / "new"})
    async with running(new, [tally.service]) as app:
        await caught_up(app, Tally.AGENT)
        await tally.check(app, {"key": ["late"]})


async def test_an_idle_worker_hears_by_itself_that_it_is_not_the_owner_any_more(
    settings: Settings, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ownership_module, "CONFIRM_INTERVAL_S", 0.05)
    async with running(settings, [tally.service]) as app:
        mark = app.engine.ownership.mark
        assert mark is not None
        moved = msgspec.structs.replace(mark, installation="another")
        await app.engine.broker.publish(
            INSTALLATION_TOPIC, 0, [(settings.app_id.encode(), msgspec.json.encode(moved), ())]
        )
        await wait_until(lambda: app.engine.fatal, "the worker ends")
        assert "another" in str(app.engine.fatal)


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_topics_are_not_adopted_while_workers_of_the_owner_run_unless_it_is_forced(
    settings: Settings, tally: Tally, tmp_path: Path
) -> None:
    new = settings.model_copy(update={"data_dir": tmp_path / "new"})
    async with running(settings, [tally.service]) as app:
        before = app.engine.ownership.mark
        with pytest.raises(NotTheOwner, match="Stop them first"):
            await adopt(new, tally)
        await app.engine.ownership.confirm()
        assert app.engine.ownership.mark == before
        await adopt(new, tally, even_if_alive=True)
        await wait_until(lambda: app.engine.fatal, "it was fenced, and looked at the mark")


async def test_another_application_may_adopt_topics_only_when_it_would_process_nothing_again(
    settings: Settings, tally: Tally
) -> None:
    other = as_application(settings, unique("other"))
    both = [tally.service, Service("source", topics=(tally.source,))]
    tally.service.produces = (*tally.service.produces, tally.source)
    async with running(settings, both):
        pass
    shutil.rmtree(settings.data_dir / "stores")
    await refusal_of(other, both)
    adopted, has_changed = await adopt(other, tally)  # there are no records yet
    assert has_changed
    assert [move.from_app_id for move in adopted.moves] == [settings.app_id]
    assert settings.app_id not in await marks_in(settings)
    async with running(other, both) as app:
        await process(app, tally, b"a")
    shutil.rmtree(settings.data_dir / "stores")
    with pytest.raises(NotTheOwner, match=f"{tally.source.name}.*ORDERS_APP_ID={other.app_id}"):
        await adopt(settings, tally)
    async with running(other, both) as app:
        await process(app, tally, b"b")
        await tally.check(app, {"key": ["a", "b"]})


# ---- the doctor


async def test_the_doctor_names_the_owner_and_who_would_be_refused(settings: Settings, tally: Tally) -> None:
    from engine.health.doctor import check_ownership

    other = as_application(settings, unique("other"))
    async with connected(settings) as broker, ownership_of(settings, broker, [tally.service]) as ownership:
        (check,) = await check_ownership(ownership, broker)
        assert check.ok
        assert "no mark" in check.detail
    async with running(settings, [tally.service]) as app:
        (check,) = await check_ownership(app.engine.ownership, app.engine.broker)
        assert check.ok
        assert settings.app_id in check.detail
        async with ownership_of(other, app.engine.broker, [tally.service]) as ownership:
            (check,) = await check_ownership(ownership, app.engine.broker)
        assert not check.ok
        assert f"ORDERS_APP_ID={settings.app_id}" in check.detail
    assert POSITIONS.changelog_topic(other.app_id) not in await topics_of(settings)


async def topics_of(settings: Settings) -> list[str]:
    """Names of all topics in the log."""
    async with connected(settings) as broker:
        return list(await broker.topics())
