"""A part of the embedded log that cannot be read any more: it is named, and nothing is accepted behind it."""

from __future__ import annotations

from pathlib import Path

import httpx
import msgspec
import pytest
from rocksdict import Rdict

from engine.declare.application import Application
from engine.log.embedded import damage as log_damage
from engine.log.embedded import storage as log_storage
from engine.log.embedded.broker import EmbeddedBroker
from engine.log.embedded.errors import LogDamaged
from engine.log.embedded.layout import StoredTopic, row_key
from engine.log.embedded.opening import open_database
from streams.app import create_app
from streams.settings import Settings
from streams.topics import ORDER_EVENTS
from tests.apps import at_rest, make_settings, running, wait_until
from tests.damage import STEP_BYTES, flip
from tests.integration.web import check_problem, client_of, find, order, place

ORDERS = 12


def remove_row(folder: Path, topic: str, number: int) -> None:
    """Take the last row of a partition out of a log: in a compacted topic no other one has to be there."""
    database: Rdict = open_database(folder)
    stored = msgspec.msgpack.decode(database.get(b"t" + topic.encode()) or b"", type=StoredTopic)
    rows = database.iter()
    rows.seek_for_prev(row_key(stored.number, number, 2**63))
    database.delete(rows.key())
    del rows
    database.close()


@pytest.fixture
async def settings(tmp_path: Path) -> Settings:
    settings = make_settings("embedded://", tmp_path)
    async with running(settings) as app, client_of(app) as client:
        for number in range(ORDERS):
            await place(client, order("c-1", f"o-{number}"))
        await at_rest(app)
    return settings


async def health(client: httpx.AsyncClient) -> str:
    return str(check_problem(await client.get("/healthz"), 503)["detail"])


async def test_a_changelog_that_is_damaged_is_named_and_nothing_is_accepted_behind_it(settings: Settings) -> None:
    changelog = f"{settings.app_id}-orders-changelog"
    remove_row(settings.data_dir / "log", changelog, 0)
    (settings.data_dir / "stores" / "0").rename(settings.data_dir / "kept")  # it has to be read from the log
    app = create_app(settings)
    app.finalize()
    await app.start()
    try:
        await wait_until(lambda: ("disk", changelog, 0) in app.engine.faults, "the damage is known")
        await wait_until(lambda: 1 in app.engine.tasks and app.engine.tasks[1].life.is_running(), "the other one runs")
        async with client_of(app) as client:
            assert f"{changelog}/0 cannot be read, so partition 0 stands still" in await health(client)
            answers: dict[int, set[int]] = {}
            for number in range(ORDERS):
                partition = app.engine.partition_for(f"o-{number}".encode())
                answers.setdefault(partition, set()).add((await client.get(f"/orders/o-{number}")).status_code)
            assert answers == {0: {503}, 1: {200}}
            codes: dict[int, set[int]] = {}
            for number in range(ORDERS, 2 * ORDERS):
                answer = await client.post("/orders", json=order("c-1", f"o-{number}"))
                partition = app.engine.partition_for(f"o-{number}".encode())
                codes.setdefault(partition, set()).add(answer.status_code)
            assert codes == {0: {503}, 1: {202}}
            assert "storage_errors_total 1.0" in (await client.get("/metrics")).text
    finally:
        await app.stop()


async def test_a_topic_that_is_damaged_stands_still_and_readers_of_it_are_told(settings: Settings) -> None:
    remove_row(settings.data_dir / "log", ORDER_EVENTS.name, 0)
    async with running(settings) as app, client_of(app) as client:
        answer = await client.get(f"/topics/{ORDER_EVENTS.name}/records", params={"from": "earliest"})
        assert answer.status_code == 503, answer.text
        assert f"{ORDER_EVENTS.name}/0 cannot be read" in await health(client)
        checks = [check for check in await find(client, "/doctor") if not check["ok"]]
        assert any("orders log check" in check["advice"] for check in checks)


async def test_what_cannot_be_read_for_a_while_goes_on_by_itself_when_it_can(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_damage, "LOOK_AGAIN_S", 0.05)
    where, earliest = f"/topics/{ORDER_EVENTS.name}/records", {"from": "earliest"}
    async with running(settings) as app, client_of(app) as client:
        spoil_rows(settings.data_dir / "log")
        assert (await client.get(where, params=earliest)).status_code == 503
        detail = await health(client)
        assert "cannot be read, so partition" in detail
        (fault, *_) = app.engine.faults.open()
        beside = next(n for n in range(99) if app.engine.partition_for(f"n-{n}".encode()) == fault.partition)
        assert (await client.post("/orders", json=order("c-1", f"n-{beside}"))).status_code == 503

        spoil_rows(settings.data_dir / "log")  # twice is not at all
        await wait_until(lambda: not app.engine.faults.open(), "it can be read again")
        assert (await client.get("/healthz")).status_code == 200
        assert len((await find(client, where, limit=100))["items"]) == ORDERS
        assert (await client.post("/orders", json=order("c-1", f"n-{beside}"))).status_code == 202
        await at_rest(app)
        assert (await client.get(f"/orders/n-{beside}")).status_code == 200


async def test_a_log_that_cannot_be_written_is_told_until_it_can_be(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_damage, "LOOK_AGAIN_S", 0.05)
    monkeypatch.setattr(log_storage, "REOPEN_PAUSE_S", 0.0)

    def refuse(folder: Path, _application: Application) -> None:
        raise LogDamaged(f"the log in {folder} is damaged: Corruption")

    async with running(settings) as app, client_of(app) as client:
        assert isinstance(app.engine.broker, EmbeddedBroker)
        app.engine.broker.log._storage._failed = True  # type: ignore[attr-defined]
        with monkeypatch.context() as patch:
            patch.setattr(log_storage, "open_log", refuse)
            assert (await client.post("/orders", json=order("c-1", "late"))).status_code == 503
            assert "nothing is accepted or committed: the log in" in await health(client)
            assert "storage_errors_total 1.0" in (await client.get("/metrics")).text
        assert (await client.post("/orders", json=order("c-1", "late"))).status_code == 202
        await wait_until(lambda: not app.engine.faults.open(), "the fault is over")
        await at_rest(app)
        assert (await client.get("/orders/late")).status_code == 200


def spoil_rows(folder: Path) -> None:
    """Change bits in the rows of each table, which are in front."""
    for table in folder.glob("*.sst"):
        for offset in range(0, table.stat().st_size // 2, STEP_BYTES // 4):
            flip(table, offset)
