"""Load while faults happen: clients that place, confirm and cancel orders and ask again until they are answered."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Self

import aiohttp
from aiokafka import AIOKafkaProducer
from aiokafka.errors import KafkaError

from tests.chaos.orders import PLACE, Order, Step, random_order, timestamp

COMMANDS = "order-commands"
ANSWER_TIMEOUT_S = 4.0  # a frozen worker keeps its connections: ask another one
RETRY_S = 0.2
RETRY_MAX_S = 2.0  # hundreds who ask all the time would leave workers no time to work
GIVE_UP_S = 120.0
IN_FLIGHT_MAX = 400
GONE = 410  # it was accepted, and is among the records that are lost since


class NobodyAnswers(Exception):
    """A client was not answered as long as it could wait: something hangs."""


class WrongAnswer(Exception):
    """A worker answered with what it must not answer."""


class Sighting(NamedTuple):
    """When a client first asked for an order (seconds since 1970), and how long until it saw it in the read model."""

    began_at: float
    seconds: float


class Driver:
    """Clients of a system under faults; `orders` holds what they asked for and were promised.

    `urls` gives the addresses of workers, any of which may be dead. Without `bootstrap` everything goes over HTTP.
    The order of random decisions depends on the seed alone, their times do not.
    """

    def __init__(
        self,
        seed: int,
        urls: Callable[[], Sequence[str]],
        bootstrap: str | None,
        http_share: float,
        orders_per_s: float,
    ) -> None:
        self.orders: list[Order] = []
        self.retries = 0
        self.bears_failures = False  # an order that nobody could place, as its customer waited, is asked for again
        self.patience_s = GIVE_UP_S
        self.retry_max_s = RETRY_MAX_S
        self.looks = False  # whoever places an order over HTTP reads it back until it is there
        self.sightings: list[Sighting] = []
        self._random = random.Random(seed)
        self._run = f"{seed:x}"
        self._urls = urls
        self._bootstrap = bootstrap
        self._http_share = http_share if bootstrap else 1.0
        self._interval_s = 1 / orders_per_s
        self._clients: set[asyncio.Task[None]] = set()
        self._failures: list[BaseException] = []
        self._producer: AIOKafkaProducer | None = None
        self._replacing = asyncio.Lock()
        self._retired: list[AIOKafkaProducer] = []
        self._http: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        if self._bootstrap:
            self._producer = await self._new_producer()
        self._http = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S))
        return self

    async def _new_producer(self) -> AIOKafkaProducer:
        producer = AIOKafkaProducer(bootstrap_servers=self._bootstrap, enable_idempotence=True, acks="all", linger_ms=2)
        await producer.start()
        return producer

    async def _replace(self, failed: AIOKafkaProducer) -> None:
        """Go on with another producer: one that was refused leaves a gap in its sequence numbers for ever."""
        async with self._replacing:
            if failed is self._producer:
                self._producer = await self._new_producer()
                self._retired.append(failed)

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients:
            client.cancel()
        await asyncio.gather(*self._clients, return_exceptions=True)
        for producer in (self._producer, *self._retired):
            if producer is not None:
                await producer.stop()
        if self._http is not None:
            await self._http.close()

    async def run(self, until: asyncio.Event) -> None:
        """Begin new orders until told to stop, then see those through that were begun; raises what a client met."""
        while not until.is_set():
            await self.begin(1)
            await asyncio.sleep(self._random.expovariate(1 / self._interval_s))
        await self.finish()

    async def begin(self, count: int) -> None:
        """Begin this many orders; waits while too many are under way."""
        for _ in range(count):
            while len(self._clients) >= IN_FLIGHT_MAX:
                await asyncio.wait(self._clients, return_when=asyncio.FIRST_COMPLETED)
            self._raise_failure()
            order = self._new_order(self._random, len(self.orders))
            self.orders.append(order)
            client = asyncio.create_task(self._see_through(order, random.Random(self._random.random())))
            self._clients.add(client)
            client.add_done_callback(self._ended)

    async def finish(self) -> None:
        """Wait until every order that was begun is answered."""
        while self._clients:
            await asyncio.wait(self._clients)
        self._raise_failure()

    def _ended(self, client: asyncio.Task[None]) -> None:
        self._clients.discard(client)
        if not client.cancelled() and (error := client.exception()) is not None:
            self._failures.append(error)

    def _raise_failure(self) -> None:
        if self._failures:
            raise self._failures[0]

    def _new_order(self, rnd: random.Random, number: int) -> Order:
        """What the next client wants."""
        return random_order(rnd, self._run, number, self._http_share)

    async def _see_through(self, order: Order, rnd: random.Random) -> None:
        """All that a client does."""
        for step in order.steps:
            await self._take(order, step, rnd)
        await self._repeat_old(order, rnd)

    async def _take(self, order: Order, step: Step, rnd: random.Random) -> None:
        """Ask for something now, and now and then twice."""
        step.asked_at = datetime.now(UTC)
        began_at = time.time()
        await self._ask(order, step, rnd)
        if self.looks and step.kind == PLACE and order.over_http:
            await self._until_answered(lambda: self._look(order, rnd), f"order {order.ref}")
            self.sightings.append(Sighting(began_at, time.time() - began_at))
        if rnd.random() < 0.2:
            await self._ask(order, step, rnd)

    async def _repeat_old(self, order: Order, rnd: random.Random) -> None:
        """Now and then send an old command once more, after others of the order: it took effect already."""
        if rnd.random() < 0.1:
            await self._ask(order, rnd.choice(order.steps), rnd)

    async def _ask(self, order: Order, step: Step, rnd: random.Random) -> None:
        ask = self._post if order.over_http else self._produce
        await self._until_answered(lambda: ask(order, step, rnd), f"{step.kind} of order {order.ref}")
        step.acknowledged = True

    async def _until_answered(self, ask: Callable[[], Awaitable[bool]], what: str) -> None:
        """Ask again and again; raises NobodyAnswers when patience is at its end."""
        deadline, pause_s = time.monotonic() + self.patience_s, RETRY_S
        while not await ask():
            self.retries += 1
            if time.monotonic() > deadline:
                raise NobodyAnswers(f"{what}: nobody answered for {self.patience_s:.0f} s")
            await asyncio.sleep(pause_s)
            pause_s = min(self.retry_max_s, 1.5 * pause_s)

    async def _produce(self, order: Order, step: Step, rnd: random.Random) -> bool:
        assert order.order_id is not None
        return await self._publish(COMMANDS, order.order_id.encode(), order.command(step))

    async def _publish(self, topic: str, key: bytes, value: bytes) -> bool:
        """Write a record; False when nobody knows whether it is there."""
        producer = self._producer
        assert producer is not None
        try:
            await producer.send_and_wait(topic, value, key=key)
        except KafkaError:
            with contextlib.suppress(KafkaError):  # the broker is away
                await self._replace(producer)
            return False
        return True

    async def _post(self, order: Order, step: Step, rnd: random.Random) -> bool:
        path, body, headers = self._request(order, step)
        if step.kind == PLACE and rnd.random() < 0.3:
            path += "?wait=1s"
        answer = await self._send("POST", path, rnd, json=body, headers=headers)
        if answer is None:
            return False
        status, found = answer
        if status == 500 and self.bears_failures:
            return False
        if status not in (201, 202, GONE):
            raise WrongAnswer(f"{step.kind} of order {order.ref}: {status} {found}")
        if order.order_id not in (None, found["order_id"]):
            raise WrongAnswer(f"order {order.ref} was {order.order_id} and is {found['order_id']} now")
        order.order_id, order.token = found["order_id"], found.get("token")
        return True

    async def _look(self, order: Order, rnd: random.Random) -> bool:
        """Read an order back with the token of its command, if that is not what the answer was."""
        if order.token is None:
            return True
        answer = await self._send("GET", f"/orders/{order.order_id}?after={order.token}", rnd)
        if answer is not None and (answer[0] != 200 or answer[1]["order_id"] != order.order_id):
            raise WrongAnswer(f"order {order.ref} is at {order.token}: {answer}")
        return answer is not None

    async def _send(self, method: str, path: str, rnd: random.Random, **request: Any) -> tuple[int, Any] | None:
        """Status and body of an answer; None when there is none for now: ask again.

        Where nobody listens, the next worker is asked at once, as a load balancer does.
        """
        assert self._http is not None
        urls = list(self._urls())
        rnd.shuffle(urls)
        for url in urls:
            try:
                async with self._http.request(method, url + path, **request) as answer:
                    status, found = answer.status, await answer.json(content_type=None)
            except aiohttp.ClientConnectorError:
                continue
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
                return None
            # A 413 for what is never large is a mistake of somebody at the topic.
            return None if status in (413, 503, 504, 507) else (status, found)
        return None

    def _request(self, order: Order, step: Step) -> tuple[str, dict[str, Any], dict[str, str]]:
        """Path, body and headers; the same for the same step."""
        if step.kind == PLACE:
            return "/orders", order.http_body(), {"Idempotency-Key": order.ref} if order.with_key else {}
        body = {"occurred_at": timestamp(step.asked_at)}
        return f"/orders/{order.order_id}/{step.kind}", body, {"Idempotency-Key": step.command_id}
