"""Requests under way when the worker stops, or when their client goes: nobody waits for them, and nothing is logged."""

from __future__ import annotations

import asyncio
import gc
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from aiohttp import web

from engine.web.answers import Around, Problem, answer_problems
from engine.web.routing import ROUTER, install
from streams.app import create_app
from tests.apps import make_settings, start, stop
from tests.kafka import unused_port

SOON_S = 5.0  # well below the 9 s after which a worker gives up


@asynccontextmanager
async def frozen_worker() -> AsyncIterator[tuple[str, asyncio.Event]]:
    """The address of somebody who takes connections and never answers, and an event that says that one has come."""
    asked, over = asyncio.Event(), asyncio.Event()

    async def hold(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.set()
        await over.wait()
        writer.close()

    port = unused_port()
    server = await asyncio.start_server(hold, "127.0.0.1", port)
    try:
        yield f"http://127.0.0.1:{port}", asked
    finally:
        over.set()
        server.close()
        await server.wait_closed()


async def set_up(application: web.Application, around: Around) -> web.AppRunner:
    """A runner as the worker's own: what is asked for and not changed is cancelled with its client."""
    runner = web.AppRunner(application, handler_cancellation=True)
    await runner.setup()
    assert runner.server is not None
    runner.server.request_handler = around(runner.server.request_handler)  # type: ignore[assignment]
    return runner


async def test_a_request_that_another_worker_holds_does_not_hold_up_the_end(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path)
    async with frozen_worker() as (owner, asked), aiohttp.ClientSession() as client:
        engine = create_app(settings, services=()).engine
        application = web.Application()
        install(application, engine, lambda number: owner)

        async def forward(request: web.Request) -> web.StreamResponse:
            return await request.app[ROUTER].forward(request, 0)

        application.router.add_get("/orders/o-1", forward)
        runner = await set_up(application, answer_problems(engine, settings.web_host))
        await web.TCPSite(runner, settings.web_host, settings.web_port).start()

        waiting = asyncio.create_task(client.get(f"{settings.public_url}/orders/o-1"))
        await asked.wait()
        began = time.monotonic()
        await runner.cleanup()
        assert time.monotonic() - began < SOON_S
        answer = await waiting
        assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
        assert "cannot be reached" in (await answer.json(content_type=None))["detail"]


@pytest.mark.parametrize(("error", "logged"), [(Problem(503, "later"), 0), (RuntimeError("a bug"), 1)])
async def test_of_a_change_whose_client_has_gone_only_bugs_are_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, error: Exception, logged: int
) -> None:
    settings, begun, go_on = make_settings("memory://", tmp_path), asyncio.Event(), asyncio.Event()

    async def change(_: web.Request) -> web.StreamResponse:
        begun.set()
        await go_on.wait()
        raise error

    engine = create_app(settings, services=()).engine
    application = web.Application()
    application.router.add_post("/orders", change)
    runner = await set_up(application, answer_problems(engine, settings.web_host))
    await web.TCPSite(runner, settings.web_host, settings.web_port).start()
    async with aiohttp.ClientSession() as client:
        asking = asyncio.create_task(client.post(f"{settings.public_url}/orders"))
        await begun.wait()
        asking.cancel()
        await asyncio.wait([asking])
        await asyncio.sleep(0.05)
        go_on.set()
        await asyncio.sleep(0.05)
    await runner.cleanup()
    gc.collect()  # a future whose error nobody has asked for says so then
    assert len([found for found in caplog.records if found.levelno >= logging.ERROR]) == logged


async def test_a_client_that_never_sends_its_body_does_not_hold_up_the_end(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path)
    app = await start(settings)
    reader, writer = await asyncio.open_connection(settings.web_host, settings.web_port)
    writer.write(b"POST /orders HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\nExpect: 100-continue\r\n\r\n")
    assert b"100 Continue" in await reader.readline(), "the body is waited for"
    began = time.monotonic()
    await stop(app)
    assert time.monotonic() - began < SOON_S
    writer.close()
