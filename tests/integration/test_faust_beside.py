"""What a user of Faust may do with the application beside the engine, and what is refused where it is declared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from faust.exceptions import ImproperlyConfigured

from engine.faust.app import engine_services
from streams.app import create_app
from tests.apps import make_settings, stop, wait_until
from tests.integration.web import client_of

MEMORY = "memory://"


async def _plain(stream: Any) -> None: ...


@pytest.mark.parametrize(
    ("declare", "instead"),
    [
        (lambda app: app.agent("order-commands")(_plain), "Service.agent"),
        (lambda app: app.agent(app.topic("somewhere-else"))(_plain), "application of its own"),
        (lambda app: app.Table("counts", default=int), "engine Table"),
        (lambda app: app.GlobalTable("counts", default=int), "engine Table"),
        (lambda app: app.SetTable("sets"), "engine Table"),
        (lambda app: app.SetGlobalTable("sets"), "engine Table"),
        (lambda app: app.LiveCheck(), "/healthz"),
    ],
)
def test_a_declaration_that_cannot_be_honoured_names_another(tmp_path: Path, declare: Any, instead: str) -> None:
    app = create_app(make_settings(MEMORY, tmp_path))
    with pytest.raises(ImproperlyConfigured, match=instead):
        declare(app)


async def test_timers_and_pages_of_faust_work_beside_the_engine(tmp_path: Path) -> None:
    app = create_app(make_settings(MEMORY, tmp_path), services=engine_services())
    ticks = 0

    @app.timer(interval=0.01)
    async def tick() -> None:
        nonlocal ticks
        ticks += 1

    @app.page("/hello/")
    async def hello(view: Any, request: Any) -> Any:
        return view.json({"hello": "world"})

    app.finalize()
    await app.start()
    try:
        await wait_until(app.engine.is_ready, "the application is ready")
        await wait_until(lambda: ticks > 2, "the timer fires")
        async with client_of(app) as client:
            answer = await client.get("/hello/")
        assert (answer.status_code, answer.json()) == (200, {"hello": "world"})
    finally:
        await stop(app)
