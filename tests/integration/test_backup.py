"""Backup and restore of the embedded log as docs/operations.md has them: a copy of the stopped worker's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.log.embedded.check import repair_log
from engine.log.embedded.mark import mark_path
from engine.log.partitioner import partition_for
from engine.log.ports import TransportUnusable
from engine.store.opening import changelog_fault
from engine.store.store import Store
from streams.app import create_app
from streams.settings import Settings
from tables.orders import ORDERS
from tests.apps import at_rest, make_settings, running, wait_until
from tests.integration.web import client_of, find, order, place

VIEWS = ("/orders/o-1", "/orders/o-1/events", "/customers/c-1/orders", "/customers/c-1", "/analytics/summary")


async def answers(client: httpx.AsyncClient) -> dict[str, Any]:
    """What the views show; order o-1 is one of those before the backup."""
    return {path: await find(client, path) for path in VIEWS}


@pytest.mark.parametrize("part", [".", "log"])
async def test_a_copy_of_the_folder_or_of_its_log_alone_gives_the_same_answers(tmp_path: Path, part: str) -> None:
    settings = make_settings("embedded://", tmp_path / "data")
    async with running(settings) as app, client_of(app) as client:
        await place(client, order("c-1", "o-1"))
        await client.post("/orders/o-1/cancel")
        await place(client, order("c-1", "o-2"))
        await at_rest(app)
        before = await answers(client)
    shutil.copytree(settings.data_dir / part, tmp_path / "backup" / part)

    async with running(settings) as app, client_of(app) as client:
        await place(client, order("c-1", "o-3"))  # what came after the backup is not in it
        await at_rest(app)
    shutil.rmtree(settings.data_dir)
    shutil.copytree(tmp_path / "backup", settings.data_dir)

    async with running(settings) as app, client_of(app) as client:
        assert await answers(client) == before
        assert (await client.get("/orders/o-3")).status_code == 404
        token = await place(client, order("c-1", "o-3"))  # and it goes on from there
        listed = await find(client, "/customers/c-1/orders", after=token)
        assert [item["order_id"] for item in listed["items"]] == ["o-3", "o-2", "o-1"]


@pytest.fixture
async def older_log(tmp_path: Path) -> Settings:
    """An installation with orders o-1 and o-2 whose log was replaced by the backup of before o-2."""
    settings = make_settings("embedded://", tmp_path / "data")
    async with running(settings) as app, client_of(app) as client:
        await place(client, order("c-1", "o-1"))
        await at_rest(app)
    shutil.copytree(settings.data_dir / "log", tmp_path / "backup" / "log")
    shutil.copy(mark_path(settings.data_dir / "log"), tmp_path / "backup")
    async with running(settings) as app, client_of(app) as client:
        await place(client, order("c-1", "o-2"))
        await at_rest(app)
    shutil.rmtree(settings.data_dir / "log")
    shutil.copytree(tmp_path / "backup" / "log", settings.data_dir / "log")
    return settings


async def check_that_only_the_first_order_is_there(settings: Settings) -> None:
    async with running(settings) as app, client_of(app) as client:
        assert (await client.get("/orders/o-1")).status_code == 200
        assert (await client.get("/orders/o-2")).status_code == 404


async def test_a_log_that_has_less_than_its_mark_waits_for_a_person_and_stores_then_follow_it(
    older_log: Settings,
) -> None:
    with pytest.raises(TransportUnusable, match="has lost the last"):
        await create_app(older_log).engine.broker.start()
    repair_log(older_log.data_dir / "log", "restored from a backup")
    await check_that_only_the_first_order_is_there(older_log)


async def test_stores_that_are_ahead_of_a_log_from_the_backup_are_kept_until_somebody_decides(
    older_log: Settings, tmp_path: Path
) -> None:
    shutil.copy(tmp_path / "backup" / "log.mark", older_log.data_dir)
    number = partition_for(b"o-2", older_log.partitions)
    app = create_app(older_log)
    app.finalize()
    await app.start()
    try:
        await wait_until(lambda: changelog_fault(number) in app.engine.faults, "its partition is refused")
        assert "an older copy of it was put back" in app.engine.faults.open()[0].detail
        async with client_of(app) as client:
            assert "an older copy" in (await client.get("/readyz")).json()["detail"]
    finally:
        await app.stop()
    store = Store(older_log.data_dir / "stores" / str(number))
    assert store.get(ORDERS.storage_key("o-2")) is not None
    store.close()

    shutil.move(older_log.data_dir / "stores", tmp_path / "stores")  # somebody decides: put aside, not deleted
    await check_that_only_the_first_order_is_there(older_log)
