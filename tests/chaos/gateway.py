"""A payment gateway under faults: away now and then, also when it has taken the money and not said so."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections import Counter, defaultdict
from decimal import Decimal
from typing import Any

from tests.payment_server import Answer, PaymentServer

DECLINE_PERCENT = 10


class UnsteadyGateway(PaymentServer):
    """Declines a tenth of the orders, by id; counts what it took and gave back per order."""

    def __init__(self) -> None:
        super().__init__()
        self.charges: Counter[str] = Counter()
        self.refunds: Counter[str] = Counter()
        self.outages = 0

    @property
    def running(self) -> bool:
        """Whether it answers."""
        return self._runner is not None

    def books(self) -> dict[str, tuple[int, int, Decimal]]:
        """By order: how often money was taken, how often given back, and what is here now."""
        return {order_id: (n, self.refunds[order_id], self.money[order_id]) for order_id, n in self.charges.items()}

    def charge_keys(self) -> dict[str, set[str]]:
        """By order: the idempotency keys its charges were asked for with."""
        found = defaultdict(set)
        for request in self.requests:
            if request.path == "/charges":
                found[request.body["order_id"]].add(request.key)
        return dict(found)

    def _take(self, body: dict[str, Any]) -> Answer:
        if zlib.crc32(body["order_id"].encode()) % 100 < DECLINE_PERCENT:
            return 402, {"reason": "card_declined"}
        answer = super()._take(body)
        self.charges[body["order_id"]] += 1
        return answer

    def _give_back(self, body: dict[str, Any]) -> Answer:
        answer = super()._give_back(body)
        self.refunds[body["order_id"]] += answer[0] == 201
        return answer

    async def come_and_go(self, seed: int, until: asyncio.Event) -> None:
        """Be away for a while, again and again; what is asked for just before is done, and not answered."""
        rnd = random.Random(seed)
        try:
            while not until.is_set():
                await asyncio.sleep(rnd.uniform(1.5, 5.0))
                self.hold()
                await asyncio.sleep(rnd.uniform(0.0, 0.5))
                await self.stop()
                self.outages += 1
                await asyncio.sleep(rnd.uniform(0.3, 2.0))
                self.let_go.set()
                await self.start()
        finally:
            self.let_go.set()
            if not self.running:
                await self.start()
