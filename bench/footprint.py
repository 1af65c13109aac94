"""Footprint: what an order leaves behind, topic by topic, when it has gone through its whole saga.

Orders as in `bench.full_order` (two lines, confirmed) go through one worker on a new broker. A JSON line per topic, and
one each for all topics together and for the worker's stores:

- `records_per_order`, `log_bytes_per_order`: what one copy of the topic has grown by, from the sizes of the broker's
  log files, with batch headers, transaction markers and index-free; nothing is compacted or deleted meanwhile.
- `kept_bytes_per_order`, compacted topics only: keys and values of the last row of each key, which is what stays when
  the log has been compacted. Tables with a row per product, customer or day grow with those, not with orders.
- `commits_per_order`: the commits of all partitions. Their markers are in every topic they wrote to, so an idle system
  that commits each order on its own leaves more bytes per order than a busy one.

    python -m bench.footprint [--orders 10000] [--rate 0]

With a rate (orders/s) the orders come at that rate instead of all at once.
"""

import argparse
import asyncio
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import msgspec
from aiokafka import AIOKafkaProducer

from bench.full_order import ENVIRONMENT
from bench.full_order_records import (
    PRODUCTS,
    Refused,
    check,
    count_confirmed,
    order,
    produce,
    read_all,
    reading,
    record,
    wait_for_quiet,
)
from bench.systems import WORK_DIR
from bench.usage import Meter
from bench.workers import running_worker
from streams.events.inventory import AddStock
from streams.topics import INVENTORY_COMMANDS, ORDER_COMMANDS, ORDER_EVENTS
from tests.kafka import KafkaBroker

RUN = "foot"
PARTITIONS = 4
CHANGELOG = "-changelog"
_PARTITION_FOLDER = re.compile(r"(.+)-\d+")


class TopicFootprint(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of output."""

    benchmark: str
    topic: str
    log_bytes_per_order: float
    records_per_order: float | None = None
    kept_bytes_per_order: float | None = None


class Footprint(msgspec.Struct, frozen=True):
    """The last line of output; store bytes are those of RocksDB's files, its write-ahead log included."""

    benchmark: str
    orders: int
    log_bytes_per_order: float
    kept_bytes_per_order: float
    store_bytes_per_order: float
    commits_per_order: float


def log_bytes(data: Path) -> Counter[str]:
    """Bytes of the broker's log files by topic."""
    sizes: Counter[str] = Counter()
    for file in data.glob("*/*.log"):
        if found := _PARTITION_FOLDER.fullmatch(file.parent.name):
            sizes[found[1]] += file.stat().st_size
    return sizes


def folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


async def kept(bootstrap: str, topic: str) -> tuple[int, int]:
    """Records of a topic, and bytes of the last record of each key, those of deleted keys left out."""
    last: dict[bytes, int] = {}
    records = await read_all(bootstrap, topic)
    for found in records:
        last[found.key] = len(found.key) + len(found.value) if found.value is not None else 0
    return len(records), sum(last.values())


async def place(bootstrap: str, orders: int, rate_per_s: int) -> None:
    """Write the commands, at a rate or all at once."""
    records = [order(RUN, number) for number in range(orders)]
    if not rate_per_s:
        await produce(bootstrap, ORDER_COMMANDS.name, records)
        return
    async with AIOKafkaProducer(bootstrap_servers=bootstrap, acks="all") as producer:
        for key, value in records:
            await producer.send(ORDER_COMMANDS.name, value, key=key)
            await asyncio.sleep(1 / rate_per_s)


async def counts(bootstrap: str, topics: Mapping[str, int]) -> dict[str, tuple[int, int]]:
    """Records and kept bytes of each of the application's topics."""
    return {topic: await kept(bootstrap, topic) for topic in topics if not topic.startswith("__")}


async def measure(broker: KafkaBroker, folder: Path, orders: int, rate_per_s: int) -> None:
    """Take orders through, and print what has grown by how much."""
    environment = ENVIRONMENT | {"ORDERS_BROKER": f"kafka://{broker.bootstrap}", "ORDERS_PARTITIONS": str(PARTITIONS)}
    data, bootstrap = broker.folder / "data", broker.bootstrap
    async with running_worker(folder / "worker", environment) as (url, process):
        stock = [record(AddStock(f"p-{number}", 10_000_000), f"stock-{number}") for number in range(PRODUCTS)]
        await produce(bootstrap, INVENTORY_COMMANDS.name, stock)
        await produce(bootstrap, ORDER_COMMANDS.name, [order(f"{RUN}-first", number) for number in range(100)])
        await wait_for_quiet(bootstrap, ORDER_EVENTS.name, 1)
        sizes, stores = log_bytes(data), folder_bytes(folder / "worker")
        before = await counts(bootstrap, sizes)
        meter = Meter(bootstrap, {url: process.pid})
        await meter.start()
        async with reading(bootstrap, ORDER_EVENTS.name, auto_offset_reset="latest") as consumer:
            await consumer.seek_to_end()
            await asyncio.gather(place(bootstrap, orders, rate_per_s), count_confirmed(consumer, RUN, orders))
        await wait_for_quiet(bootstrap, ORDER_EVENTS.name, 0)
        cost = await meter.cost(orders)
        grown, after = log_bytes(data) - sizes, await counts(bootstrap, sizes)
        stores = folder_bytes(folder / "worker") - stores
    await check(bootstrap, {RUN: orders})
    kept_total = 0
    for topic, size in grown.most_common():
        records, kept_bytes = after.get(topic, (0, 0))
        records, kept_bytes = records - before.get(topic, (0, 0))[0], kept_bytes - before.get(topic, (0, 0))[1]
        compacted = topic.endswith(CHANGELOG)
        kept_total += kept_bytes if compacted else 0
        show(
            TopicFootprint(
                "footprint",
                topic,
                round(size / orders, 1),
                round(records / orders, 3) if topic in after else None,
                round(kept_bytes / orders, 1) if compacted else None,
            )
        )
    show(
        Footprint(
            "footprint-of-all",
            orders,
            round(grown.total() / orders, 1),
            round(kept_total / orders, 1),
            round(stores / orders, 1),
            round((cost.commits or 0) / orders, 4),
        )
    )


def show(result: msgspec.Struct) -> None:
    """Print a JSON line."""
    print(msgspec.json.encode(result).decode(), flush=True)


def main() -> None:
    """Print a JSON line for each topic."""
    parser = argparse.ArgumentParser(prog="python -m bench.footprint", description=__doc__)
    parser.add_argument("--orders", type=int, default=10_000)
    parser.add_argument("--rate", type=int, default=0, help="orders/s; 0, the default: all at once")
    arguments = parser.parse_args()
    WORK_DIR.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="footprint-", dir=WORK_DIR) as name:
        folder = Path(name)
        with KafkaBroker(folder / "kafka", java_options=["-Xms1g", "-Xmx1g"]) as broker:
            try:
                asyncio.run(measure(broker, folder, arguments.orders, arguments.rate))
            except Refused as error:
                sys.exit(str(error))


if __name__ == "__main__":
    main()
