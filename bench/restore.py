"""Restore of a table of a million orders into an empty folder, and the memory of the worker that then serves it.

The changelog of `orders` is filled with rows as the application writes them; then a worker starts with an empty data
folder. `rows_per_s` is over the time until /readyz answers, less that of a worker without any rows. `memory_mib` is
the peak of the worker's resident memory after it has answered READS requests for random orders.

    python -m bench.restore [--rows 1000000] [--bootstrap localhost:9092]
"""

import argparse
import asyncio
import os
import random
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path

import aiohttp
import msgspec

from bench.broker import PARTITIONS, running_broker
from bench.systems import WORK_DIR
from bench.workers import running_worker
from domain.orders import PENDING, Order
from engine.log.kafka.broker import KafkaBroker
from engine.log.partitioner import partition_for
from engine.log.ports import TopicSpec
from streams.events.money import Money
from streams.events.orders import OrderItem
from streams.settings import Settings
from tables.orders import ORDERS

READS = 20_000
ROWS_PER_BATCH = 2_000
PRICE = Money(Decimal("19.99"), "GBP")


class Restore(msgspec.Struct, frozen=True):
    """One line of output."""

    benchmark: str
    rows: int
    row_bytes: int
    seconds: float
    rows_per_s: float
    memory_mib: float


def order(number: int) -> Order:
    """A placed order with two lines."""
    items = tuple(OrderItem(f"sku-{(number + line) % 5000}", 1 + line, PRICE) for line in range(2))
    return Order(
        order_id=f"order-{number:08d}",
        customer_id=f"customer-{number % 50_000:05d}",
        status=PENDING,
        items=items,
        item_count=3,
        total=Money(Decimal("59.97"), "GBP"),
        country="United Kingdom",
        email=None,
        created_at=datetime(2010, 12, 1, 8, 26, tzinfo=UTC),
        confirmed_at=None,
        cancelled_at=None,
        cancel_reason=None,
        version=1,
    )


async def fill(settings: Settings, rows: int) -> int:
    """Write the changelog; returns the bytes of one row."""
    broker = KafkaBroker(settings)
    topic = ORDERS.changelog_topic(settings.app_id)
    await broker.start()
    try:
        await broker.create_topics([TopicSpec(topic, PARTITIONS, True, None)])
        for batch in _batches(rows):
            await asyncio.gather(*(broker.publish(topic, number, records) for number, records in batch.items()))
    finally:
        await broker.stop()
    return len(ORDERS.encode_row(order(0)))


def _batches(rows: int) -> Iterator[dict[int, list[tuple[bytes, bytes, tuple[()]]]]]:
    for first in range(0, rows, ROWS_PER_BATCH):
        batch: dict[int, list[tuple[bytes, bytes, tuple[()]]]] = {}
        for number in range(first, min(first + ROWS_PER_BATCH, rows)):
            row = order(number)
            key = row.order_id.encode()
            batch.setdefault(partition_for(key, PARTITIONS), []).append((key, ORDERS.encode_row(row), ()))
        yield batch


async def start_and_read(environment: dict[str, str], folder: Path, rows: int, reads: int) -> tuple[float, float]:
    """Seconds from start to ready, and the peak memory in MiB after `reads` requests."""
    started = time.perf_counter()
    async with running_worker(folder, environment) as (url, process):
        seconds = time.perf_counter() - started
        generator = random.Random(7)
        async with aiohttp.ClientSession() as session:
            for _ in range(reads):
                async with session.get(f"{url}/orders/order-{generator.randrange(rows):08d}") as answer:
                    answer.raise_for_status()
        return seconds, peak_memory_mib(process.pid)


def peak_memory_mib(pid: int) -> float:
    """The peak of a process's resident memory."""
    status = Path(f"/proc/{pid}/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024


async def run(bootstrap: str, rows: int) -> Restore:
    """Fill, start without and with rows, and compare."""
    tag = f"restore-{os.getpid()}"
    base = {"ORDERS_BROKER": f"kafka://{bootstrap}", "ORDERS_LOG_LEVEL": "WARNING"}
    with tempfile.TemporaryDirectory(prefix="restore-") as name:
        folder = Path(name)
        # Twice: the first start creates the topics, the second one only restores nothing. Under the same application id
        # as the others, as topics have one owner.
        for attempt in range(2):
            empty_s, _ = await start_and_read({**base, "ORDERS_APP_ID": tag}, folder / f"e{attempt}", 1, 0)
        settings = Settings(broker=f"kafka://{bootstrap}", app_id=tag)
        row_bytes = await fill(settings, rows)
        await start_and_read({**base, "ORDERS_APP_ID": tag}, folder / "warm", rows, 0)
        full_s, memory_mib = await start_and_read({**base, "ORDERS_APP_ID": tag}, folder / "full", rows, READS)
    seconds = full_s - empty_s
    return Restore("restore", rows, row_bytes, round(seconds, 2), round(rows / seconds), round(memory_mib))


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m bench.restore", description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--bootstrap")
    arguments = parser.parse_args()
    WORK_DIR.mkdir(exist_ok=True)
    with running_broker(arguments.bootstrap, WORK_DIR) as bootstrap:
        print(msgspec.json.encode(asyncio.run(run(bootstrap, arguments.rows))).decode(), flush=True)


if __name__ == "__main__":
    main()
