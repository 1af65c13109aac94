"""A shop under faults: customers whose orders need stock and money, and who change their minds, on top of `driver`."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any

from aiokafka import AIOKafkaConsumer

from tests.chaos.driver import Driver, WrongAnswer
from tests.chaos.gateway import UnsteadyGateway
from tests.chaos.orders import CANCEL, CONFIRM, EVENT_TYPES, PLACE, REJECTED, SHIP, Order, encode, new_id, new_step
from tests.chaos.orders import timestamp as as_text
from tests.chaos.world import stop_consumer

STOCK_COMMANDS, PAYMENT_COMMANDS = "inventory-commands", "payment-commands"
ADD, ADJUST = "inventory.stock", "inventory.adjust"
PLENTY = [f"SKU-{number}" for number in range(12)]
SCARCE = [f"RARE-{number}" for number in range(4)]
PLENTY_PIECES = 1_000_000
SCARCE_PIECES = 40
RESTOCK_S = 1.0
LOOK_S = 0.1
ECHO_SHARE = 0.03


@dataclass
class StockStep:
    """A command of the shop's own: pieces to be added to a product, or what a stocktake has found."""

    kind: str
    product_id: str
    quantity: int
    command_id: str
    asked_at: datetime
    acknowledged: bool = False

    def command(self) -> bytes:
        """The command as a record's value."""
        amount = {"quantity": self.quantity} if self.kind == ADD else {"onHand": self.quantity}
        payload = {"productId": self.product_id, **amount}
        return encode(self.kind, self.command_id, ("Product", self.product_id), self.asked_at, self.command_id, payload)


class Shop(Driver):
    """Clients as in Driver, of a system with sagas: nobody confirms orders but the system itself.

    A quarter of the customers cancel, at a random moment; a quarter of the orders are shipped once they are confirmed.
    Some products are scarce and filled up again now and then. With Kafka a careless client sends some of the system's
    own commands once more.
    """

    def __init__(
        self,
        seed: int,
        urls: Callable[[], Sequence[str]],
        bootstrap: str | None,
        http_share: float,
        orders_per_s: float,
        gateway: UnsteadyGateway | None = None,
    ) -> None:
        super().__init__(seed, urls, bootstrap, http_share, orders_per_s)
        self._gateway = gateway
        self.stock: list[StockStep] = []
        self.echoed = 0
        self._shop_random = random.Random(seed + 1)
        self._bootstrap_servers = bootstrap

    async def run(self, until: asyncio.Event) -> None:
        """Fill the shelves, then as in Driver."""
        meanwhile: list[Coroutine[Any, Any, None]] = []
        if self._bootstrap_servers is not None:
            meanwhile.append(self._echo(self._bootstrap_servers, until))
        if self._gateway is not None:
            meanwhile.append(self._gateway.come_and_go(self._shop_random.randrange(2**32), until))
        others = [asyncio.create_task(other) for other in meanwhile]
        try:
            await self.fill_shelves()
            others.append(asyncio.create_task(self._restock(until)))
            await super().run(until)
            await asyncio.gather(*others)
        finally:
            for other in others:
                other.cancel()
            await asyncio.gather(*others, return_exceptions=True)

    async def fill_shelves(self) -> None:
        """Put the first pieces of every product on the shelf."""
        rnd = self._shop_random
        for product_id, quantity in [(p, PLENTY_PIECES) for p in PLENTY] + [(p, SCARCE_PIECES) for p in SCARCE]:
            await self._change_stock(self._stock_step(rnd, product_id, quantity), rnd)

    async def _restock(self, until: asyncio.Event) -> None:
        rnd = self._shop_random
        while not until.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(until.wait(), RESTOCK_S)
            await self._change_stock(self._stock_step(rnd, rnd.choice(SCARCE), rnd.randrange(1, SCARCE_PIECES)), rnd)

    def _stock_step(self, rnd: random.Random, product_id: str, quantity: int) -> StockStep:
        kind = ADJUST if self._bootstrap_servers is None or rnd.random() < 0.3 else ADD
        step = StockStep(kind, product_id, quantity, new_id(rnd), datetime.now(UTC))
        self.stock.append(step)
        return step

    async def _change_stock(self, step: StockStep, rnd: random.Random) -> None:
        """Ask until it is accepted, and now and then twice."""
        for _ in range(1 + (rnd.random() < 0.3)):
            await self._until_answered(lambda: self._ask_stock(step, rnd), f"{step.kind} of {step.product_id}")
        step.acknowledged = True

    async def _ask_stock(self, step: StockStep, rnd: random.Random) -> bool:
        if step.kind == ADD:
            return await self._publish(STOCK_COMMANDS, step.product_id.encode(), step.command())
        body = {
            "quantity": step.quantity,
            "occurred_at": as_text(step.asked_at),
            "command_id": step.command_id,
        }
        answer = await self._send("PUT", f"/inventory/{step.product_id}", rnd, json=body)
        if answer is not None and answer[0] != 202:
            raise WrongAnswer(f"stock of {step.product_id}: {answer}")
        return answer is not None

    # ---- customers

    def _new_order(self, rnd: random.Random, number: int) -> Order:
        return random_purchase(rnd, self._run, number, self._http_share)

    async def _see_through(self, order: Order, rnd: random.Random) -> None:
        await self._take(order, order.steps[0], rnd)
        intent = rnd.choices((None, CANCEL, SHIP, CONFIRM), (45, 25, 25, 5))[0]
        if intent == CANCEL:
            await asyncio.sleep(rnd.choice((0.0, rnd.uniform(0.0, 0.2), rnd.uniform(0.0, 4.0))))
            await self._also(order, CANCEL, rnd)
        elif intent == SHIP:
            # Now and then too early, or although it was cancelled: then it is refused.
            if rnd.random() < 0.9 and await self._decided(order, rnd) != "confirmed" and rnd.random() < 0.8:
                return
            await self._also(order, SHIP, rnd)
            if rnd.random() < 0.3:
                await self._also(order, CANCEL, rnd)
        elif intent == CONFIRM:
            await self._also(order, CONFIRM, rnd)
        await self._repeat_old(order, rnd)

    async def _also(self, order: Order, kind: str, rnd: random.Random) -> None:
        step = new_step(rnd, kind, REJECTED if kind == CONFIRM else EVENT_TYPES[kind])
        order.steps.append(step)
        await self._take(order, step, rnd)

    async def _decided(self, order: Order, rnd: random.Random) -> str:
        """Look until the order is not pending any more; its status."""
        status = "pending"

        async def look() -> bool:
            nonlocal status
            answer = await self._send("GET", f"/orders/{order.order_id}", rnd)
            status = answer[1]["status"] if answer is not None and answer[0] == 200 else "pending"
            return status != "pending"

        await self._until_answered(look, f"status of order {order.ref}")
        return status

    def _request(self, order: Order, step: Any) -> tuple[str, dict[str, Any], dict[str, str]]:
        """As in Driver, but changes name their command, so that its effect is found."""
        path, body, headers = super()._request(order, step)
        return (path, body, headers) if step.kind == PLACE else (path, body | {"command_id": step.command_id}, {})

    # ---- a careless client

    async def _echo(self, bootstrap: str, until: asyncio.Event) -> None:
        """Send some commands of sagas a second time, a moment later, byte for byte."""
        rnd = random.Random(self._shop_random.random())
        consumer = AIOKafkaConsumer(
            STOCK_COMMANDS,
            PAYMENT_COMMANDS,
            bootstrap_servers=bootstrap,
            group_id=None,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            while not until.is_set():
                for tp, records in (await consumer.getmany(timeout_ms=200)).items():
                    for record in records:
                        if rnd.random() < ECHO_SHARE:
                            await asyncio.sleep(rnd.uniform(0.0, 0.1))
                            self.echoed += await self._publish(tp.topic, record.key, record.value)
        finally:
            await stop_consumer(consumer)


def random_purchase(rnd: random.Random, run: str, number: int, http_share: float, customers: int = 200) -> Order:
    """An order of one to four lines, one in ten of them of a scarce product; it is only placed."""
    over_http = rnd.random() < http_share
    with_key = over_http and rnd.random() < 0.5
    ref = f"{run}-{number}"
    order = Order(
        ref,
        None if with_key else f"order-{ref}",
        f"customer-{rnd.randrange(customers)}",
        [
            (
                rnd.choice(SCARCE if rnd.random() < 0.1 else PLENTY),
                rnd.randrange(1, 6),
                Decimal(rnd.randrange(1, 10_000)) / 100,
            )
            for _ in range(rnd.randrange(1, 5))
        ],
        over_http,
        with_key,
    )
    order.steps = [new_step(rnd, PLACE, EVENT_TYPES[PLACE])]
    return order
