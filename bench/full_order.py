"""Full order: orders with two lines go through their whole saga, from order.place to order.confirmed, exactly once.

All services run in `orders worker` with its defaults (4 partitions), the payment gateway is the simulator without
latency, and every order ends confirmed: stock reserved for both lines, money taken. A JSON line for each figure:

- `full-order` throughput: the workers are up, warm and share the partitions; they are stopped (SIGSTOP) while N
  commands are written, and go on. The time is from SIGCONT until a read_committed consumer in this process has the
  last `order.confirmed`. `workers` says how many processes shared the partitions.
- `placed-to-confirmed` latency: orders arrive at a steady rate on a running worker. The time is from just before
  `order.place` is sent until a read_committed consumer in this process has `order.confirmed`. An open loop; the first
  20 s are warming up and do not count.
- `placed-to-confirmed` at 1,500 orders/s: the same. The rate is sustained when the latencies stay in bounds; orders
  that are not confirmed within a minute of the last one refuse the figure.
- `full-order-embedded`: the same on the embedded log, placed by `POST /orders/batch`; the time is from the first
  request until no saga is left, so it has the HTTP side in it.

A figure is refused (exit status 1) unless every order is confirmed, with three pieces reserved and one payment each in
the event topics (on the embedded log: unless all sagas are completed).

    python -m bench.full_order [--orders 30000] [--only throughput,latency,...] [--bootstrap localhost:9092]
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition

from bench.broker import running_broker
from bench.systems import WORK_DIR
from bench.workers import running_worker
from streams.envelope import Message, Metadata, encode_envelope, new_envelope
from streams.events.inventory import AddStock
from streams.events.money import Money
from streams.events.orders import OrderItem, PlaceOrder
from streams.topics import INVENTORY_COMMANDS, INVENTORY_EVENTS, ORDER_COMMANDS, ORDER_EVENTS, PAYMENT_EVENTS

PRODUCTS = 1000
CUSTOMERS = 10_000
PARTITIONS = 4
WARM_UP_ORDERS = 2000
WARM_UP_S = 20.0
SUSTAINED_PER_S = 1500
TIMEOUT_S = 600.0
PRICE = Money(Decimal("9.95"), "EUR")
CONFIRMED = b'"eventType":"order.confirmed"'
# Whatever the machine's environment says; a worker that is stopped while orders are written must not lose its place.
ENVIRONMENT = {
    "ORDERS_LOG_LEVEL": "WARNING",
    "ORDERS_SAGA": "orchestration",
    "ORDERS_PAYMENT_URL": "",
    "ORDERS_PAYMENT_DECLINE": "0",
    "ORDERS_PAYMENT_LATENCY": "0",
    "ORDERS_PAYMENT_OUTAGE_EVERY": "0",
    "ORDERS_SESSION_TIMEOUT": "60",
}
FIGURES = ("throughput", "latency", "sustained", "scaling", "embedded")


class Throughput(msgspec.Struct, frozen=True):
    """One line of output."""

    benchmark: str
    workers: int
    cores: int
    orders: int
    seconds: float
    orders_per_s: float


class Latency(msgspec.Struct, frozen=True):
    """One line of output; times are milliseconds."""

    benchmark: str
    rate_per_s: int
    orders: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class Refused(Exception):
    """What was measured is not what was promised."""


# ---- what is sent


def items(number: int) -> tuple[OrderItem, OrderItem]:
    """Two lines of different products."""
    first = number * 7 % PRODUCTS
    return OrderItem(f"p-{first}", 1, PRICE), OrderItem(f"p-{(first + 1 + number % 500) % PRODUCTS}", 2, PRICE)


def record(payload: Message, command_id: str) -> tuple[bytes, bytes]:
    """Key and value of a command."""
    assert payload.aggregate_id_field is not None
    key = getattr(payload, payload.aggregate_id_field)
    envelope = new_envelope(
        payload, event_id=command_id, aggregate_id=key, timestamp=datetime.now(UTC), metadata=Metadata()
    )
    return key.encode(), encode_envelope(envelope)


def order(run: str, number: int) -> tuple[bytes, bytes]:
    """A command that places an order."""
    order_id = f"{run}-{number}"
    return record(PlaceOrder(order_id, f"c-{number % CUSTOMERS}", items(number)), f"place-{order_id}")


async def produce(bootstrap: str, topic: str, records: Sequence[tuple[bytes, bytes]]) -> None:
    """Write records, each to the partition of its key."""
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=20) as producer:
        for start in range(0, len(records), 5000):
            chunk = records[start : start + 5000]
            await asyncio.gather(*[await producer.send(topic, value, key=key) for key, value in chunk])


# ---- what is read


@asynccontextmanager
async def reading(bootstrap: str, topic: str, **options: Any) -> AsyncIterator[AIOKafkaConsumer]:
    """A read_committed consumer of all partitions of a topic."""
    consumer = AIOKafkaConsumer(bootstrap_servers=bootstrap, isolation_level="read_committed", **options)
    await consumer.start()
    try:
        consumer.assign([TopicPartition(topic, number) for number in range(PARTITIONS)])
        yield consumer
    finally:
        await consumer.stop()


async def read_all(bootstrap: str, topic: str) -> list[Any]:
    """Every committed record of a topic."""
    async with reading(bootstrap, topic, auto_offset_reset="earliest", max_partition_fetch_bytes=8 << 20) as consumer:
        ends = await consumer.end_offsets(consumer.assignment())
        found: list[Any] = []
        while any([await consumer.position(partition) < end for partition, end in ends.items()]):
            for records in (await consumer.getmany(timeout_ms=500)).values():
                found += records
        return found


async def wait_for_quiet(bootstrap: str, topic: str, at_least: int) -> None:
    """Wait until a topic has grown by that many offsets and grows no more; asks once a second."""
    async with reading(bootstrap, topic) as consumer:
        consumer.pause(*consumer.assignment())
        first = before = sum((await consumer.end_offsets(consumer.assignment())).values())
        deadline = time.monotonic() + TIMEOUT_S
        while time.monotonic() < deadline:
            await asyncio.sleep(1.0)
            end = sum((await consumer.end_offsets(consumer.assignment())).values())
            if end == before and end - first >= at_least:
                return
            before = end
    raise Refused(f"{topic} has not come to rest in {TIMEOUT_S:.0f} s")


async def check(bootstrap: str, runs: Mapping[str, int]) -> None:
    """Refuse a run in which stock or money do not add up: `runs` is the number of orders by prefix of their ids."""
    reserved: Counter[str] = Counter()
    received: Counter[str] = Counter()
    for topic, into, kind in (
        (INVENTORY_EVENTS, reserved, "inventory.reserved"),
        (PAYMENT_EVENTS, received, "payment.received"),
    ):
        for found in await read_all(bootstrap, topic.name):
            event = json.loads(found.value)
            if event["eventType"] == kind:
                into[event["payload"]["orderId"]] += event["payload"].get("quantity", 1)
    for run, count in runs.items():
        for number in range(count):
            order_id = f"{run}-{number}"
            if (reserved[order_id], received[order_id]) != (3, 1):
                raise Refused(f"{order_id}: {reserved[order_id]} pieces reserved, {received[order_id]} payments")


async def count_confirmed(consumer: AIOKafkaConsumer, run: str, orders: int) -> None:
    """Read until every order of a run is confirmed; raises Refused when that takes too long."""
    prefix, confirmed = run.encode() + b"-", 0
    try:
        async with asyncio.timeout(TIMEOUT_S):
            while confirmed < orders:
                for records in (await consumer.getmany(timeout_ms=1000)).values():
                    confirmed += sum(CONFIRMED in found.value and found.key.startswith(prefix) for found in records)
    except TimeoutError as error:
        raise Refused(f"{run}: {confirmed} of {orders} orders were confirmed in {TIMEOUT_S:.0f} s") from error


# ---- the benchmarks


@asynccontextmanager
async def workers(folder: Path, bootstrap: str, count: int) -> AsyncIterator[list[asyncio.subprocess.Process]]:
    """Run that many workers of one group, each on a data folder of its own that outlives it."""
    async with AsyncExitStack() as stack:
        environment = ENVIRONMENT | {"ORDERS_BROKER": f"kafka://{bootstrap}"}
        processes = []
        for number in range(count):
            _, process = await stack.enter_async_context(running_worker(folder / f"data-{number}", environment))
            processes.append(process)
        yield processes


async def warm_up(bootstrap: str, run: str) -> None:
    """Take some orders through, so that partitions are shared out and compilers and caches warm."""
    await produce(bootstrap, ORDER_COMMANDS.name, [order(run, number) for number in range(WARM_UP_ORDERS)])
    await wait_for_quiet(bootstrap, ORDER_EVENTS.name, 1)


async def prepare(folder: Path, bootstrap: str) -> None:
    """Create the topics, and stock every product."""
    async with workers(folder, bootstrap, 1):
        stock = [record(AddStock(f"p-{number}", 10_000_000), f"stock-{number}") for number in range(PRODUCTS)]
        await produce(bootstrap, INVENTORY_COMMANDS.name, stock)
        await warm_up(bootstrap, "first")


async def throughput(folder: Path, bootstrap: str, run: str, orders: int, count: int) -> Throughput:
    """Let `count` workers take the orders that were written while they were stopped."""
    records = [order(run, number) for number in range(orders)]
    async with (
        workers(folder, bootstrap, count) as processes,
        reading(
            bootstrap, ORDER_EVENTS.name, auto_offset_reset="latest", max_partition_fetch_bytes=8 << 20
        ) as consumer,
    ):
        await warm_up(bootstrap, f"{run}-warm")
        await consumer.seek_to_end()
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        try:
            await produce(bootstrap, ORDER_COMMANDS.name, records)
        finally:
            for process in processes:
                process.send_signal(signal.SIGCONT)
        began = time.perf_counter()
        await count_confirmed(consumer, run, orders)
        seconds = time.perf_counter() - began
    await check(bootstrap, {run: orders})
    return Throughput("full-order", count, os.cpu_count() or 1, orders, round(seconds, 2), round(orders / seconds))


async def latency(folder: Path, bootstrap: str, rate_per_s: int, seconds: float) -> Latency:
    """Place orders at a steady rate and wait for each to be confirmed."""
    async with workers(folder, bootstrap, 1):
        run = f"at-{rate_per_s}"
        await steady(bootstrap, f"{run}-warm", rate_per_s, WARM_UP_S)
        taken = await steady(bootstrap, run, rate_per_s, seconds)
    await check(bootstrap, {run: len(taken)})
    milliseconds = [second * 1000 for second in taken]
    cuts = statistics.quantiles(milliseconds, n=100)
    shown = [round(value, 1) for value in (cuts[49], cuts[94], cuts[98], max(milliseconds))]
    return Latency("placed-to-confirmed", rate_per_s, len(taken), *shown)


async def steady(bootstrap: str, run: str, rate_per_s: int, seconds: float) -> list[float]:
    """Seconds from placed to confirmed of orders at a steady rate."""
    sent: dict[bytes, float] = {}
    taken: list[float] = []
    count = int(rate_per_s * seconds)

    async def watch(consumer: AIOKafkaConsumer) -> None:
        while len(taken) < count:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                now = time.perf_counter()
                taken.extend(
                    now - sent.pop(found.key) for found in records if found.key in sent and CONFIRMED in found.value
                )

    async with (
        reading(bootstrap, ORDER_EVENTS.name, auto_offset_reset="latest", fetch_max_wait_ms=50) as consumer,
        AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=0) as producer,
    ):
        await consumer.seek_to_end()
        watching = asyncio.create_task(watch(consumer))
        began = time.perf_counter()
        for number in range(count):
            await asyncio.sleep(max(0.0, began + number / rate_per_s - time.perf_counter()))
            key, value = order(run, number)
            sent[key] = time.perf_counter()
            await producer.send(ORDER_COMMANDS.name, value, key=key)
        await asyncio.wait_for(watching, 60)
    return taken


async def embedded(folder: Path, orders: int) -> Throughput:
    """Place orders over HTTP on the embedded log, and wait until no saga is left."""
    environment = ENVIRONMENT | {"ORDERS_BROKER": "embedded://"}
    async with running_worker(folder / "embedded", environment) as (url, _), aiohttp.ClientSession() as session:
        for number in range(PRODUCTS):
            async with session.put(f"{url}/inventory/p-{number}", json={"quantity": 10_000_000}) as answer:
                answer.raise_for_status()
        bodies = [body(number) for number in range(orders)]
        began = time.monotonic()
        for start in range(0, orders, 2000):
            async with session.post(f"{url}/orders/batch", data=b"\n".join(bodies[start : start + 2000])) as answer:
                answer.raise_for_status()
        while (done := await completed(session, url)) < orders:
            if time.monotonic() - began > TIMEOUT_S:
                raise Refused(f"{done} of {orders} orders are confirmed after {TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.1)
        seconds = time.monotonic() - began
    return Throughput("full-order-embedded", 1, os.cpu_count() or 1, orders, round(seconds, 2), round(orders / seconds))


def body(number: int) -> bytes:
    """A line of `POST /orders/batch`."""
    lines = [{"product_id": item.product_id, "quantity": item.quantity, "price": item.price} for item in items(number)]
    return msgspec.json.encode({"order_id": f"e-{number}", "customer_id": f"c-{number % CUSTOMERS}", "items": lines})


async def completed(session: aiohttp.ClientSession, url: str) -> int:
    """How many sagas are completed."""
    async with session.get(f"{url}/tables/saga-counts", params={"limit": 100}) as answer:
        found = await answer.json()
    return sum(item["row"]["count"] for item in found["items"] if item["key"] == "completed")


async def run(arguments: argparse.Namespace, bootstrap: str) -> None:
    """Measure what is asked for and print a line for each."""
    only = set(arguments.only.split(","))
    if unknown := only - {*FIGURES}:
        raise Refused(f"there is no {', '.join(sorted(unknown))}: choose from {', '.join(FIGURES)}")
    with tempfile.TemporaryDirectory(prefix="full-order-") as name:
        folder = Path(name)
        if only & {"throughput", "latency", "sustained", "scaling"}:
            await prepare(folder, bootstrap)
        if "throughput" in only:
            show(await throughput(folder, bootstrap, "one", arguments.orders, 1))
        if "latency" in only:
            show(await latency(folder, bootstrap, arguments.rate, arguments.seconds))
        if "sustained" in only:
            show(await latency(folder, bootstrap, SUSTAINED_PER_S, arguments.seconds))
        if "scaling" in only:
            show(await throughput(folder, bootstrap, "alone", arguments.orders, 1))
            show(await throughput(folder, bootstrap, "both", arguments.orders, 2))
        if "embedded" in only:
            show(await embedded(folder, arguments.orders))


def show(result: msgspec.Struct) -> None:
    """Print a JSON line."""
    print(msgspec.json.encode(result).decode(), flush=True)


def main() -> None:
    """Print a JSON line for each figure."""
    parser = argparse.ArgumentParser(prog="python -m bench.full_order", description=__doc__)
    parser.add_argument("--orders", type=int, default=30_000)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--only", default=",".join(FIGURES))
    parser.add_argument("--bootstrap")
    arguments = parser.parse_args()
    WORK_DIR.mkdir(exist_ok=True)
    with running_broker(arguments.bootstrap, WORK_DIR) as bootstrap:
        try:
            asyncio.run(run(arguments, bootstrap))
        except Refused as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
