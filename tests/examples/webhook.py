"""A webhook for tests: a real HTTP server that notes what it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from aiohttp import web

from tests.kafka import unused_port


class Call(NamedTuple):
    """What the webhook was told, and under which idempotency key."""

    key: str
    body: dict[str, Any]


class Webhook:
    """Takes alerts. A test sets `answers` to have calls answered with these statuses first, and not taken."""

    def __init__(self) -> None:
        self.url = f"http://127.0.0.1:{unused_port()}/alerts"
        self.calls: list[Call] = []
        self.answers: list[int] = []

    def taken(self, sensor_id: str) -> list[dict[str, Any]]:
        """What it was told of a sensor; what came again under the same key is told once."""
        return list({call.key: call.body for call in self.calls if call.body["sensor_id"] == sensor_id}.values())

    def keys(self, sensor_id: str) -> list[str]:
        """The keys of all calls about a sensor."""
        return [call.key for call in self.calls if call.body["sensor_id"] == sensor_id]

    async def take(self, request: web.Request) -> web.Response:
        """Note an alert, and answer."""
        self.calls.append(Call(request.headers["Idempotency-Key"], await request.json()))
        return web.Response(status=self.answers.pop(0) if self.answers else 204)


@asynccontextmanager
async def webhook(answers: Iterable[int] = ()) -> AsyncIterator[Webhook]:
    """Run a webhook while the block lasts."""
    found = Webhook()
    found.answers += answers
    application = web.Application()
    application.router.add_post("/alerts", found.take)
    runner = web.AppRunner(application, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(found.url.rsplit(":", 1)[1].split("/")[0])).start()
    try:
        yield found
    finally:
        await runner.cleanup()
