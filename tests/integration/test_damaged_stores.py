"""A store whose disk lies: nothing is answered from what cannot be read, and it is built anew from its changelog."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio

from engine.faust.app import EngineApp
from engine.log.embedded.broker import EmbeddedBroker
from engine.positions.positions import POSITIONS
from engine.store import damaged as damaged_store
from engine.store import scrub
from engine.store.damaged import move_aside, remove_old
from streams.app import create_app
from streams.settings import Settings
from tables.orders import ORDERS
from tests.apps import (
    DURABLE_TRANSPORTS,
    Tally,
    broker_url,
    caught_up,
    connected,
    make_settings,
    publish,
    running,
    wait_until,
)
from tests.damage import damage_rows, flip
from tests.integration.web import check_problem, client_of, find, order

ORDERS_PLACED = 200


@pytest_asyncio.fixture
async def settings(tmp_path: Path) -> Settings:
    """Settings of a stopped worker on the embedded log that has placed orders."""
    settings = make_settings("embedded://", tmp_path, partitions=1)
    async with running(settings) as app, client_of(app) as client:
        lines = [json.dumps(order(f"c-{n % 2}", f"o-{n:03}")) for n in range(ORDERS_PLACED)]
        assert (await client.post("/orders/batch", content="\n".join(lines))).status_code == 202
        await caught_up(app)
    return settings


@pytest_asyncio.fixture
async def app(settings: Settings) -> AsyncIterator[EngineApp]:
    """Start the worker again with damage in the rows of its orders."""
    damage_rows(settings.data_dir / "stores" / "0", ORDERS.prefix, but_not=POSITIONS.prefix)
    async with running(settings) as app:
        yield app


async def until_healed(app: EngineApp) -> None:
    await wait_until(lambda: app.engine.metrics.stores_rebuilt and app.engine.is_ready(), "the store is built anew")


async def test_rows_that_cannot_be_read_are_never_a_shorter_list_and_come_back_by_themselves(
    app: EngineApp, caplog: pytest.LogCaptureFixture
) -> None:
    async with client_of(app) as client:
        answer = await client.get("/tables/orders", params={"limit": 1000})
        assert "is damaged and cannot be read" in check_problem(answer, 503)["detail"]
        assert "is damaged and cannot be read" in check_problem(await client.get("/healthz"), 503)["detail"]
        assert 'open_faults{kind="disk"} 1.0' in (await client.get("/metrics")).text
        doctor = (await client.get("/doctor")).json()
        assert [check["check"] for check in doctor if "is damaged" in check["detail"]] == ["disk"]
        await until_healed(app)
        assert len((await find(client, "/tables/orders", limit=1000))["items"]) == ORDERS_PLACED
        assert (await client.get("/healthz")).status_code == 200
        figures = (await client.get("/metrics")).text
        assert "storage_errors_total 1.0" in figures
        assert "stores_rebuilt_total 1.0" in figures
    assert len(list(app.engine.store_path(0).parent.glob("0.damaged-*/*.sst"))) > 0
    assert "and built anew from its changelog" in caplog.text
    assert not [record for record in caplog.records if record.exc_info]


async def test_damage_that_nobody_reads_is_found_by_the_scrub(app: EngineApp, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scrub, "FIRST_AFTER_S", 0.0)
    monkeypatch.setattr(scrub, "SHARE", 1.0)
    app.engine.tasks[0]._scrub.plan()
    await until_healed(app)
    async with client_of(app) as client:
        assert len((await find(client, "/tables/orders", limit=1000))["items"]) == ORDERS_PLACED
    # The store that was built anew is whole, to its end, in as many slices as it takes.
    await wait_until(lambda: app.engine.metrics.store_scrubs, "a pass is over")
    assert app.engine.metrics.stores_rebuilt == 1


async def test_positions_that_cannot_be_read_are_never_the_beginning(settings: Settings) -> None:
    damage_rows(settings.data_dir / "stores" / "0", POSITIONS.prefix)
    async with running(settings) as app:
        assert app.engine.metrics.stores_rebuilt == 1
        assert app.engine.metrics.committed_records == 0


# ---- what damage does to the files


def lose(pattern: str) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        for file in store.glob(pattern):
            file.unlink()

    return damage


def spoil(pattern: str) -> Callable[[Path], None]:
    def damage(store: Path) -> None:
        for file in store.glob(pattern):
            flip(file, file.stat().st_size // 2)

    return damage


KEYS = [f"key-{number}" for number in range(6)]


@pytest_asyncio.fixture(params=DURABLE_TRANSPORTS)
async def filled(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Settings, Tally]:
    """A stopped application with two values of each key."""
    settings, tally = make_settings(broker_url(request), tmp_path), Tally()
    async with running(settings, [tally.service]) as app:
        for key in KEYS:
            await publish(app, tally.source, key, b"a", b"b")
        await caught_up(app)
    return settings, tally


def stores_of(settings: Settings) -> list[Path]:
    return [folder for folder in (settings.data_dir / "stores").iterdir() if folder.name.isdecimal()]


@pytest.mark.parametrize("note", [True, False], ids=["with its note", "of an earlier release"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(spoil("MANIFEST*"), id="MANIFEST flipped"),
        pytest.param(lose("*.sst"), id="tables missing"),
        pytest.param(lose("CURRENT"), id="CURRENT missing"),
    ],
)
async def test_a_store_that_cannot_be_opened_is_built_anew_and_every_record_counts_once(
    filled: tuple[Settings, Tally], damage: Callable[[Path], None], note: bool
) -> None:
    settings, tally = filled
    for store in stores_of(settings):
        damage(store)
        if not note:
            store.with_name(f"{store.name}.note").unlink()
    async with running(settings, [tally.service]) as app:
        assert app.engine.metrics.stores_rebuilt == len(stores_of(settings))
        assert not app.engine.faults.open()
        await tally.check(app, {key: ["a", "b"] for key in KEYS})
        await publish(app, tally.source, KEYS[0], b"c")
        await caught_up(app)
        await tally.check(app, {key: ["a", "b"] for key in KEYS} | {KEYS[0]: ["a", "b", "c"]})


async def test_a_damaged_store_is_kept_when_its_changelog_was_made_anew(tmp_path: Path) -> None:
    settings, tally = make_settings("embedded://", tmp_path, partitions=1), Tally()
    async with running(settings, [tally.service]) as app:
        await publish(app, tally.source, KEYS[0], b"a")
        await caught_up(app)
    changelog, store = tally.table.changelog_topic(settings.app_id), settings.data_dir / "stores" / "0"
    async with connected(settings) as broker:
        assert isinstance(broker, EmbeddedBroker)
        broker.log.delete_topic(changelog)
    spoil("MANIFEST*")(store)
    before = {file.name for file in store.iterdir()}
    app = create_app(settings, services=[tally.service])
    app.finalize()
    await app.start()
    try:
        await wait_until(app.engine.faults.open, "the damage is found")
        (fault,) = app.engine.faults.open()
        assert fault.kind == "disk"
        assert f"{changelog}/0 is not the topic that the store was made from" in fault.detail
        assert "backup" in fault.advice
        assert (app.engine.is_ready(), app.engine.metrics.stores_rebuilt) == (False, 0)
        assert {file.name for file in store.iterdir()} >= before
    finally:
        await app.stop()


def test_damaged_stores_are_removed_when_they_are_old_or_take_too_much_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    aside = []
    for number in range(4):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "000001.sst").write_bytes(bytes(100))
        aside.append(move_aside(tmp_path / f"{number}"))
    remove_old(tmp_path)
    assert all(folder.exists() for folder in aside)
    monkeypatch.setattr(damaged_store, "KEPT_BYTES_MAX", 250)
    remove_old(tmp_path)
    assert [folder.exists() for folder in aside] == [False, False, True, True]
    monkeypatch.setattr(damaged_store, "KEPT_S", 0.0)
    remove_old(tmp_path)
    assert not any(folder.exists() for folder in aside)
