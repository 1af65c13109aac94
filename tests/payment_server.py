"""A payment gateway for tests: a real HTTP server that honours idempotency keys and keeps books."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import Any, NamedTuple

from aiohttp import web

from tests.kafka import unused_port

Answer = tuple[int, dict[str, str]]


class Request(NamedTuple):
    """A call as the server saw it."""

    path: str
    key: str
    body: dict[str, Any]


class PaymentServer:
    """Takes and gives back money, once per idempotency key.

    `declined` are order ids whose charges are, `refunds_declined` those whose refunds are. A test sets `answers` to
    have calls answered with that instead, first come first served, and `held` to keep answers (not what they do) back.
    """

    def __init__(self) -> None:
        self.port = unused_port()
        self.requests: list[Request] = []
        self.traceparents: list[str] = []
        self.answers: list[web.Response] = []
        self.declined: set[str] = set()
        self.refunds_declined: set[str] = set()
        self.money: dict[str, Decimal] = {}  # what is here of each order
        self.open = 0
        self.most_open = 0
        self.let_go = asyncio.Event()
        self.let_go.set()
        self._by_key: dict[str, Answer] = {}
        self._runner: web.AppRunner | None = None

    @property
    def url(self) -> str:
        """Where it is, running or not."""
        return f"http://127.0.0.1:{self.port}/v1"

    def hold(self) -> None:
        """Keep answers back until `let_go` is set."""
        self.let_go.clear()

    def paths(self, order_id: str) -> list[str]:
        """The calls about an order, in the order they came."""
        return [request.path for request in self.requests if request.body["order_id"] == order_id]

    def accept_refund(self, order_id: str) -> None:
        """Give the money of an order back from now on, whatever was answered before."""
        self.refunds_declined.discard(order_id)
        self._by_key = {key: answer for key, answer in self._by_key.items() if answer[0] != 422}

    async def start(self) -> None:
        """Answer from now on."""
        application = web.Application()
        application.router.add_post("/v1/charges", self._charge)
        application.router.add_post("/v1/refunds", self._refund)
        self._runner = web.AppRunner(application, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Refuse connections from now on; books and address stay."""
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    async def _charge(self, request: web.Request) -> web.Response:
        return await self._handle(request, self._take)

    async def _refund(self, request: web.Request) -> web.Response:
        return await self._handle(request, self._give_back)

    async def _handle(self, request: web.Request, do: Any) -> web.Response:
        key, body = request.headers["Idempotency-Key"], await request.json()
        assert request.content_type == "application/json"
        self.traceparents += request.headers.getall("traceparent", [])
        self.requests.append(Request(request.path.removeprefix("/v1"), key, body))
        if self.answers:
            return self.answers.pop(0)
        if key not in self._by_key:
            self._by_key[key] = do(body)
        status, answer = self._by_key[key]
        self.open += 1
        self.most_open = max(self.most_open, self.open)
        try:
            await self.let_go.wait()
        finally:
            self.open -= 1
        return web.json_response(answer, status=status)

    def _take(self, body: dict[str, Any]) -> Answer:
        order_id = body["order_id"]
        if order_id in self.declined:
            return 402, {"reason": "card_declined"}
        self.money[order_id] = self.money.get(order_id, Decimal(0)) + Decimal(body["amount"]["amount"])
        return 201, {"reference": f"ch-{order_id}"}

    def _give_back(self, body: dict[str, Any]) -> Answer:
        order_id = body["order_id"]
        if order_id in self.refunds_declined or body["reference"] != f"ch-{order_id}":
            return 422, {"reason": "refund_refused"}
        self.money[order_id] -= Decimal(body["amount"]["amount"])
        return 201, {"reference": f"re-{order_id}"}


@asynccontextmanager
async def payment_server() -> AsyncIterator[PaymentServer]:
    """Run a payment server while the block lasts."""
    server = PaymentServer()
    await server.start()
    try:
        yield server
    finally:
        server.let_go.set()
        await server.stop()
