"""The workload of whole sagas: stock, payment and confirmation of every order, whatever fails meanwhile."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import aiohttp

from tests.chaos.driver import Driver
from tests.chaos.faults import WORKER
from tests.chaos.gateway import UnsteadyGateway
from tests.chaos.ledger import Ledger
from tests.chaos.saga_verifier import count_outcomes, find_problems, is_settled
from tests.chaos.shop import PLENTY, SCARCE, Shop
from tests.chaos.verify_balance import problems_at_any_moment
from tests.chaos.verify_orders import count_broken
from tests.chaos.workload import Urls
from tests.chaos.world import World

STYLES = ("orchestration", "choreography")
ORDERS_LOOKED_AT = 200
LOOKERS = 8
LOOK_TIMEOUT_S = 30.0


class Sagas:
    """Orders that need stock and money, in one style of saga, or in another at each worker (`mixed`).

    With `over_http` money is taken by a gateway over HTTP that comes and goes, otherwise by the simulator, which does
    so as well.
    """

    def __init__(self, style: str, over_http: bool = False, **settings: str) -> None:
        self._style = style
        self._gateway = UnsteadyGateway() if over_http else None
        self._settings = settings
        self._shop: Shop | None = None
        self._views: dict[str, tuple[int, Any]] = {}

    releases: Sequence[Sequence[str]] = (WORKER,)
    sound: Sequence[str] = WORKER

    def settings(self, number: int) -> dict[str, str]:
        """See Workload."""
        style = STYLES[number % 2] if self._style == "mixed" else self._style
        if self._gateway is not None:
            payment = {"ORDERS_PAYMENT_URL": self._gateway.url, "ORDERS_PAYMENT_TIMEOUT": "1"}
        else:
            payment = {
                "ORDERS_PAYMENT_DECLINE": "0.1",
                "ORDERS_PAYMENT_LATENCY": "0.02",
                "ORDERS_PAYMENT_OUTAGE_EVERY": "3",
                "ORDERS_PAYMENT_OUTAGE_LENGTH": "0.5",
            }
        return {"ORDERS_SAGA": style, **payment, **self._settings}

    def around(self, urls: Urls) -> AbstractAsyncContextManager[object]:
        """See Workload."""
        return self._gateway_open()

    def driver(self, seed: int, urls: Urls, bootstrap: str | None, http_share: float, orders_per_s: float) -> Driver:
        """See Workload."""
        self._shop = Shop(seed, urls, bootstrap, http_share, orders_per_s, self._gateway)
        return self._shop

    def faults_are_over(self) -> None:
        """Customers see through what they have begun, and the gateway stays."""

    def is_settled(self, world: World) -> bool:
        """See Workload."""
        return is_settled(world)

    def is_worth_a_look(self) -> bool:
        """See Workload."""
        return True

    def judge_moment(self, world: World) -> dict[str, list[str]]:
        """See Workload."""
        return problems_at_any_moment(world)

    async def look(self, world: World, urls: Urls) -> None:
        """Ask for the views of some orders and all products."""
        placed = [order.order_id for order in world.orders if order.order_id is not None]
        orders = random.Random(1).sample(placed, min(ORDERS_LOOKED_AT, len(placed)))
        paths = [f"/{kind}/{order_id}" for order_id in orders for kind in ("orders", "payments", "sagas")]
        self._views = await look_at([*paths, *(f"/inventory/{product}" for product in (*PLENTY, *SCARCE))], urls)

    def judge(self, world: World) -> tuple[dict[str, list[str]], tuple[int, int], dict[str, float]]:
        """See Workload."""
        assert self._shop is not None
        ledger, gateway = Ledger(world), self._gateway
        books = (gateway.books(), gateway.charge_keys()) if gateway is not None else None
        figures: dict[str, float] = {**count_outcomes(ledger), "echoed": self._shop.echoed}
        if gateway is not None:
            figures |= {"payment_requests": len(gateway.requests), "payment_outages": gateway.outages}
        problems = find_problems(ledger, self._shop.stock, self._views, books)
        return problems, count_broken(ledger), figures

    @asynccontextmanager
    async def _gateway_open(self) -> AsyncIterator[None]:
        if self._gateway is None:
            yield
            return
        await self._gateway.start()
        try:
            yield
        finally:
            self._gateway.let_go.set()
            await self._gateway.stop()


async def look_at(paths: Sequence[str], urls: Urls) -> dict[str, tuple[int, Any]]:
    """Status and body of each path, at any of the workers."""
    views: dict[str, tuple[int, Any]] = {}
    waiting = list(paths)
    deadline = time.monotonic() + LOOK_TIMEOUT_S

    async def look(http: aiohttp.ClientSession) -> None:
        while waiting:
            path = waiting.pop()
            while True:
                views[path] = await _look(http, urls, path)
                if views[path][0] not in (0, 503) or time.monotonic() > deadline:
                    break
                await asyncio.sleep(0.1)

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=5)) as http:
        await asyncio.gather(*(look(http) for _ in range(LOOKERS)))
    return views


async def _look(http: aiohttp.ClientSession, urls: Urls, path: str) -> tuple[int, Any]:
    url = random.choice(urls())
    try:
        async with http.get(url + path) as answer:
            if answer.status == 404 and path.startswith("/sagas/"):
                return await _look(http, urls, f"/tables{path}")
            return answer.status, await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError) as error:
        return 0, str(error)
