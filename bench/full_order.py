"""Full order: orders with two lines go through their whole saga, from order.place to order.confirmed, exactly once.

All services run in `orders worker` with its defaults (4 partitions; `--partitions` for another number, on a broker of
its own), the payment gateway is the simulator without latency, and every order ends confirmed: stock reserved for both
lines, money taken. A JSON line for each figure:

- `full-order` throughput: the workers are up, warm and share the partitions; they are stopped (SIGSTOP) while N
  commands are written, and go on. The time is from SIGCONT until a read_committed consumer in this process has the
  last `order.confirmed`. `workers` says how many processes shared the partitions.
- `placed-to-confirmed` latency: orders arrive at a steady rate on a running worker. The time is from just before
  `order.place` is sent until a read_committed consumer in this process has `order.confirmed`. An open loop; the first
  20 s are warming up and do not count.
- `placed-to-confirmed` at 1,500 orders/s: the same. `sustained` is true when the p99 is at most 1 s and latencies do
  not grow: the median of the last quarter of the orders is at most twice that of the first quarter and 100 ms. Orders
  that are not confirmed within a minute of the last one refuse the figure.
- `full-order-embedded`: the same on the embedded log, placed by `POST /orders/batch`; the time is from the first
  request until no saga is left, so it has the HTTP side in it.

A figure is refused (exit status 1) unless every order is confirmed, with three pieces reserved and one payment each in
the event topics, and what was charged is the sum of the orders' totals (on the embedded log: unless all sagas
are completed). `cost` has the CPU of worker, broker and this client per order, from /proc, and the worker's commits; it
tells more than the rate when the machine has other things to do. The broker's CPU for writing the commands is in it.

    python -m bench.full_order [--orders 30000] [--only throughput,latency,...] [--bootstrap localhost:9092] [--profile]
"""

import argparse
import asyncio
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import msgspec
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from bench.broker import running_broker
from bench.full_order_records import (
    CONFIRMED,
    CUSTOMERS,
    PRODUCTS,
    TIMEOUT_S,
    Refused,
    check,
    count_confirmed,
    items,
    order,
    produce,
    reading,
    record,
    wait_for_quiet,
)
from bench.profiler import NoProfiler, find_profiler, profiling
from bench.systems import WORK_DIR
from bench.usage import Cost, Meter
from bench.workers import running_worker
from streams.events.inventory import AddStock
from streams.topics import INVENTORY_COMMANDS, ORDER_COMMANDS, ORDER_EVENTS

RUN = f"{int(time.time()):x}"  # a broker named with --bootstrap has the orders of earlier runs
WARM_UP_ORDERS = 2000
# The broker of a new benchmark takes 0.46 ms of CPU for an order, four times as much as one that is compiled.
BROKER_WARM_UP_ORDERS = 10_000
BROKER_WARM_UP_PER_S = 60
WARM_UP_S = 20.0
STRAGGLERS_S = 60.0
TICK_S = 0.002
SUSTAINED_PER_S = 1500
SUSTAINED_P99_MS = 1000.0
QUEUE_MS = 100.0
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
    partitions: int
    cores: int
    orders: int
    seconds: float
    orders_per_s: float
    cost: Cost


class Latency(msgspec.Struct, frozen=True):
    """One line of output; times are milliseconds, `first` and `last` the medians of the first and last quarter."""

    benchmark: str
    partitions: int
    rate_per_s: int
    orders: int
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float
    first_p50_ms: float
    last_p50_ms: float
    sustained: bool
    cost: Cost


# ---- the benchmarks


@dataclass(frozen=True)
class Bench:
    """Where a benchmark runs: a folder for the workers' data, a broker, and how many partitions its topics have."""

    folder: Path
    bootstrap: str
    partitions: int


@dataclass
class Workers:
    """Running workers of one group, and a meter of what they cost."""

    processes: list[asyncio.subprocess.Process]
    meter: Meter


@asynccontextmanager
async def workers(bench: Bench, count: int) -> AsyncIterator[Workers]:
    """Run that many workers of one group, each on a data folder of its own that outlives it."""
    async with AsyncExitStack() as stack:
        environment = ENVIRONMENT | {
            "ORDERS_BROKER": f"kafka://{bench.bootstrap}",
            "ORDERS_PARTITIONS": str(bench.partitions),
        }
        found = {}
        for number in range(count):
            url, process = await stack.enter_async_context(running_worker(bench.folder / f"data-{number}", environment))
            found[url] = process
        yield Workers([*found.values()], Meter(bench.bootstrap, {url: process.pid for url, process in found.items()}))


async def warm_up(bootstrap: str, run: str, orders: int = WARM_UP_ORDERS) -> None:
    """Take some orders through, so that partitions are shared out and compilers and caches warm."""
    await produce(bootstrap, ORDER_COMMANDS.name, [order(run, number) for number in range(orders)])
    await wait_for_quiet(bootstrap, ORDER_EVENTS.name, 1)


async def prepare(bench: Bench) -> None:
    """Create the topics, stock every product, and take enough orders through for the broker to be compiled."""
    bootstrap = bench.bootstrap
    async with workers(bench, 1):
        stock = [record(AddStock(f"p-{number}", 10_000_000), f"{RUN}-stock-{number}") for number in range(PRODUCTS)]
        await produce(bootstrap, INVENTORY_COMMANDS.name, stock)
        await warm_up(bootstrap, f"{RUN}-first", BROKER_WARM_UP_ORDERS)
        await steady(bootstrap, f"{RUN}-small", BROKER_WARM_UP_PER_S, WARM_UP_S)


async def throughput(bench: Bench, run: str, orders: int, count: int, profile: Path | None) -> None:
    """Let `count` workers take the orders that were written while they were stopped."""
    bootstrap = bench.bootstrap
    records = [order(run, number) for number in range(orders)]
    async with (
        workers(bench, count) as running,
        reading(
            bootstrap, ORDER_EVENTS.name, auto_offset_reset="latest", max_partition_fetch_bytes=8 << 20
        ) as consumer,
    ):
        await warm_up(bootstrap, f"warm-{run}")  # not a prefix of its own orders
        await consumer.seek_to_end()
        await running.meter.start()
        for process in running.processes:
            process.send_signal(signal.SIGSTOP)
        try:
            await produce(bootstrap, ORDER_COMMANDS.name, records)
        finally:
            for process in running.processes:
                process.send_signal(signal.SIGCONT)
        async with profiling(running.processes[0].pid, profile, run):
            began = time.perf_counter()
            await count_confirmed(consumer, run, orders)
            seconds = time.perf_counter() - began
        cost = await running.meter.cost(orders)
    await check(bootstrap, {run: orders})
    rate = round(orders / seconds)
    show(Throughput("full-order", count, bench.partitions, os.cpu_count() or 1, orders, round(seconds, 2), rate, cost))


async def latency(bench: Bench, rate_per_s: int, seconds: float, profile: Path | None) -> None:
    """Place orders at a steady rate and wait for each to be confirmed."""
    bootstrap = bench.bootstrap
    run = f"{RUN}-at-{rate_per_s}"
    async with workers(bench, 1) as running:
        await steady(bootstrap, f"{run}-warm", rate_per_s, WARM_UP_S)
        await running.meter.start()
        async with profiling(running.processes[0].pid, profile, run):
            taken = await steady(bootstrap, run, rate_per_s, seconds)
        cost = await running.meter.cost(len(taken))
    await check(bootstrap, {run: len(taken)})
    show(summary(bench.partitions, rate_per_s, taken, cost))


def summary(partitions: int, rate_per_s: int, taken: Sequence[float], cost: Cost) -> Latency:
    """The figures of a steady rate, from seconds in the order in which orders were placed.

    The rate is sustained when latencies neither grow (the median of the last quarter is at most twice that of the
    first, and QUEUE_MS more) nor are out of bounds (p99).
    """
    milliseconds = [second * 1000 for second in taken]
    cuts = statistics.quantiles(milliseconds, n=100)
    quarter = len(milliseconds) // 4
    first, last = statistics.median(milliseconds[:quarter]), statistics.median(milliseconds[-quarter:])
    sustained = cuts[98] <= SUSTAINED_P99_MS and last <= 2 * first + QUEUE_MS
    return Latency(
        "placed-to-confirmed",
        partitions,
        rate_per_s,
        len(taken),
        p50_ms=round(cuts[49], 1),
        p95_ms=round(cuts[94], 1),
        p99_ms=round(cuts[98], 1),
        max_ms=round(max(milliseconds), 1),
        first_p50_ms=round(first, 1),
        last_p50_ms=round(last, 1),
        sustained=sustained,
        cost=cost,
    )


async def steady(bootstrap: str, run: str, rate_per_s: int, seconds: float) -> list[float]:
    """Seconds from placed to confirmed of orders at a steady rate, in the order in which they were placed."""
    count = int(rate_per_s * seconds)
    orders = [order(run, number) for number in range(count)]  # made before: the client is to take little of the machine
    sent: dict[bytes, float] = {}
    taken: dict[bytes, float] = {}

    async def watch(consumer: AIOKafkaConsumer) -> None:
        while len(taken) < count:
            for records in (await consumer.getmany(timeout_ms=1000)).values():
                now = time.perf_counter()
                for found in records:
                    if CONFIRMED in found.value and found.key in sent:
                        taken.setdefault(found.key, now - sent[found.key])

    async with (
        reading(bootstrap, ORDER_EVENTS.name, auto_offset_reset="latest", fetch_max_wait_ms=50) as consumer,
        AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all", linger_ms=0) as producer,
    ):
        await consumer.seek_to_end()
        watching = asyncio.create_task(watch(consumer))
        began = time.perf_counter()
        for number, (key, value) in enumerate(orders):
            # All that are due go in one go: a pause for each would cost this client a third of a core at 1,500/s.
            if (early_s := began + number / rate_per_s - time.perf_counter()) > 0:
                await asyncio.sleep(max(early_s, TICK_S))
            sent[key] = time.perf_counter()
            await producer.send(ORDER_COMMANDS.name, value, key=key)
        try:
            await asyncio.wait_for(watching, STRAGGLERS_S)
        except TimeoutError as error:
            raise Refused(
                f"{rate_per_s} orders/s: {count - len(taken)} of {count} were not confirmed within {STRAGGLERS_S:.0f} s"
            ) from error
    return [taken[key] for key, _ in orders]


async def embedded(folder: Path, orders: int, partitions: int) -> None:
    """Place orders over HTTP on the embedded log, and wait until no saga is left."""
    environment = ENVIRONMENT | {"ORDERS_BROKER": "embedded://", "ORDERS_PARTITIONS": str(partitions)}
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
    rate = round(orders / seconds)
    show(Throughput("full-order-embedded", 1, partitions, os.cpu_count() or 1, orders, round(seconds, 2), rate, Cost()))


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
        bench = Bench(Path(name), bootstrap, arguments.partitions)
        if only & {"throughput", "latency", "sustained", "scaling"}:
            await prepare(bench)
        profile = WORK_DIR / "profiles" if arguments.profile else None
        if "throughput" in only:
            await throughput(bench, f"{RUN}-one", arguments.orders, 1, profile)
        if "latency" in only:
            await latency(bench, arguments.rate, arguments.seconds, profile)
        if "sustained" in only:
            await latency(bench, arguments.sustained_rate, arguments.seconds, profile)
        if "scaling" in only:
            for count in range(1, arguments.workers + 1):
                await throughput(bench, f"{RUN}-by-{count}", arguments.orders, count, profile)
        if "embedded" in only:
            await embedded(bench.folder, arguments.orders, bench.partitions)


def show(result: msgspec.Struct) -> None:
    """Print a JSON line."""
    print(msgspec.json.encode(result).decode(), flush=True)


def main() -> None:
    """Print a JSON line for each figure."""
    parser = argparse.ArgumentParser(prog="python -m bench.full_order", description=__doc__)
    parser.add_argument("--orders", type=int, default=30_000)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--sustained-rate", type=int, default=SUSTAINED_PER_S)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--partitions", type=int, default=4)
    parser.add_argument("--workers", type=int, default=4, help="scaling: from one up to this many (default 4)")
    parser.add_argument("--only", default=",".join(FIGURES))
    parser.add_argument("--bootstrap")
    parser.add_argument("--profile", action="store_true", help="py-spy beside each figure; the figures suffer from it")
    arguments = parser.parse_args()
    if arguments.profile:
        try:
            find_profiler()
        except NoProfiler as error:
            parser.error(str(error))
    WORK_DIR.mkdir(exist_ok=True)
    with running_broker(arguments.bootstrap, WORK_DIR) as bootstrap:
        try:
            asyncio.run(run(arguments, bootstrap))
        except Refused as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
