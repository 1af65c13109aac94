"""The embedded log after damage: a machine that went down, and a repair, as a worker and its commands meet them."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from engine.log.embedded import opening as log_opening
from tests.apps import at_rest, make_settings, running, start
from tests.integration.web import client_of, find, order, place


def cut_off(folder: Path, share: float) -> None:
    """Leave a share of the write-ahead log, as a machine does that goes down before it has written the rest."""
    (wal,) = (file for file in folder.glob("*.log") if file.stat().st_size)
    with wal.open("r+b") as file:
        file.truncate(int(wal.stat().st_size * share))


async def test_after_a_power_cut_the_log_goes_on_with_what_is_there_and_stores_follow_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings("embedded://", tmp_path / "living")
    app = await start(settings)
    async with client_of(app) as client:
        for number in range(20):
            await place(client, order("c-1", f"o-{number}"))
        await at_rest(app)
        shutil.copytree(settings.data_dir, tmp_path / "data")  # what the operating system has, as after a kill
    await app.stop()
    settings = settings.model_copy(update={"data_dir": tmp_path / "data"})
    cut_off(settings.data_dir / "log", 0.6)
    monkeypatch.setattr(log_opening, "this_boot", lambda: "the next run of the machine")
    async with running(settings) as app, client_of(app) as client:
        await find(client, "/healthz")
        await at_rest(app)
        there = [n for n in range(20) if (await client.get(f"/orders/o-{n}")).status_code == 200]
        assert 0 < len(there) < 20
        assert there == list(range(len(there)))  # a tail is gone, nothing in the middle
        await place(client, order("c-1", "o-19"))  # and it goes on
        listed = await find(client, "/customers/c-1/orders", limit="100")
        assert len(listed["items"]) in (len(there), len(there) + 1)
