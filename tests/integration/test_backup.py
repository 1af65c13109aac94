"""Backup and restore of the embedded log as docs/operations.md has them: a copy of the stopped worker's folder."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from streams.app import create_app
from streams.engine.opening import changelog_fault
from streams.engine.store import Store
from streams.transport.partitioner import partition_for
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


async def test_stores_that_are_ahead_of_a_log_from_the_backup_are_kept_until_somebody_decides(tmp_path: Path) -> None:
    settings = make_settings("embedded://", tmp_path / "data")
    async with running(settings) as app, client_of(app) as client:
        await place(client, order("c-1", "o-1"))
        await at_rest(app)
    shutil.copytree(settings.data_dir / "log", tmp_path / "backup")
    async with running(settings) as app, client_of(app) as client:
        await place(client, order("c-1", "o-2"))
        await at_rest(app)
    shutil.rmtree(settings.data_dir / "log")
    shutil.copytree(tmp_path / "backup", settings.data_dir / "log")
    number = partition_for(b"o-2", settings.partitions)
    app = create_app(settings)
    app.finalize()
    await app.start()
    try:
        await wait_until(lambda: changelog_fault(number) in app.engine.faults, "its partition is refused")
        assert "an older copy of it was put back" in app.engine.faults.open()[0].detail
        async with client_of(app) as client:
            assert "an older copy" in (await client.get("/readyz")).json()["detail"]
    finally:
        await app.stop()
    store = Store(settings.data_dir / "stores" / str(number))
    assert store.get(ORDERS.storage_key("o-2")) is not None
    store.close()

    shutil.move(settings.data_dir / "stores", tmp_path / "stores")  # somebody decides: put aside, not deleted
    async with running(settings) as app, client_of(app) as client:
        assert (await client.get("/orders/o-1")).status_code == 200
        assert (await client.get("/orders/o-2")).status_code == 404
