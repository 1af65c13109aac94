"""What metrics cost: CPU time per record, per row read and per scrape, beside what a record costs at all.

A whole record takes some ten microseconds and varies by more than its metrics cost, even between runs in one process,
so what metrics add is measured by itself: the lines that `PartitionTask` spends on them for each record, with the real
objects and the times of real records, over and over. The fastest of some rounds counts; others were disturbed.

- `record_us`: one record of the orders job through a partition task on `memory://`, decoded, one row read and written,
  committed; metrics included.
- `metrics_us`: what of it is metrics, when each record has the type of the one before; `metrics_us_mixed`: when no
  record has. The clock is read for the length of a slice anyway and is not part of it.
- `row_read_us`: the count of one row read, which comes on top for each.
- `scrape_ms`: one answer of `/metrics` of the whole application.

    python -m bench.metrics_cost [--records 20000] [--rounds 7]
"""

from __future__ import annotations

import argparse
import asyncio
import random
import tempfile
import time
import timeit
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from bench.produce import records as orders
from engine.declare.envelope import Envelope
from engine.declare.service import Service
from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Record
from engine.observe.gauges import Gauges
from engine.observe.metrics import Metrics
from streams.app import create_app
from streams.events.orders import OrderPlaced
from tests.apps import HandFed, hand_fed, make_settings, process

SCRAPES = 50
FETCH = 500
CALLS = 200_000
ROUNDS = 7


class CustomerCount(msgspec.Struct, frozen=True, gc=False):
    """The row: how many orders a customer has."""

    orders: int = 0


class Cost(msgspec.Struct, frozen=True):
    """The line of output; times are CPU time."""

    benchmark: str
    records: int
    record_us: float
    metrics_us: float
    metrics_us_mixed: float
    row_read_us: float
    share: float
    scrape_ms: float
    scrape_bytes: int


INPUT = Topic("cost-input", "orders of the orders job", own_key=False)
COUNTS: Table[str, CustomerCount] = Table("cost-counts", CustomerCount, help="orders by customer")
service = Service("cost", tables=(COUNTS,))
counting = service.agent("count-orders", INPUT, help="Count each customer's orders.")


@counting.on(OrderPlaced)
def count(event: Envelope[OrderPlaced], work: UnitOfWork) -> None:
    """One read and one write."""
    customer_id = event.payload.customer_id
    before = work.get(COUNTS, customer_id) or CustomerCount()
    work.put(COUNTS, customer_id, CustomerCount(before.orders + 1))


async def measure(count: int, rounds: int) -> Cost:
    """Measure each part."""
    values = [(key, value) for _, key, value in orders(count)]
    with tempfile.TemporaryDirectory() as folder:
        async with hand_fed(make_settings("memory://", Path(folder), partitions=1), [service]) as fed:
            record_us = min([await _run(fed, values, number * count) for number in range(rounds)]) / count * 1e6
    metrics_us = _metrics_us(["order.placed"], record_us)
    row_read_us = _us("metrics.cache_hits += 1", "pass", metrics=Metrics())
    scrape_ms, scrape_bytes = _scrape()
    return Cost(
        "metrics_cost",
        count,
        round(record_us, 2),
        round(metrics_us, 3),
        round(_metrics_us(["order.placed", "order.confirmed"], record_us), 3),
        round(row_read_us, 3),
        round((metrics_us + row_read_us) / record_us, 3),
        scrape_ms,
        scrape_bytes,
    )


async def _run(fed: HandFed, values: Sequence[tuple[bytes | None, bytes]], offset: int) -> float:
    """CPU seconds for handling and committing these records."""
    records = [Record(offset + index, 0, key, value, ()) for index, (key, value) in enumerate(values)]
    began = time.process_time()
    for first in range(0, len(records), FETCH):
        await process(fed.fetch(0, INPUT, records[first : first + FETCH]), counting.name, fed.bound(counting))
    task = fed.engine.tasks[0]
    await task.suspend()  # commits what is open
    used = time.process_time() - began
    task.resume()
    return used


def _metrics_us(types: Sequence[str], record_us: float) -> float:
    """What metrics add to a record of a slice in which these types take turns."""
    chosen, generator = (list(types) * CALLS)[:CALLS], random.Random(7)
    records = [(event_type, record_us * 1e-6 * generator.uniform(0.5, 2)) for event_type in chosen]
    counted = """
last_type = ""
for event_type, seconds in records:
    if event_type != last_type:
        last_type = event_type
        observe = metrics.event(event_type).seconds.observe
    observe(seconds)
"""
    return _us(counted, "for event_type, seconds in records: pass", 1, metrics=Metrics(types), records=records)


def _us(counted: str, uncounted: str, times: int = CALLS, **names: Any) -> float:
    """CPU time of CALLS executions of one statement above those of another, in microseconds for each."""
    fastest = [
        min(timeit.repeat(code, globals=names, number=times, repeat=ROUNDS, timer=time.process_time))
        for code in (counted, uncounted)
    ]
    return (fastest[0] - fastest[1]) / CALLS * 1e6


def _scrape() -> tuple[float, int]:
    """Milliseconds and bytes of all families of the whole application, without partitions."""
    with tempfile.TemporaryDirectory() as folder:
        app = create_app(make_settings("memory://", Path(folder)))
        Gauges(app.engine, [gauge for found in app.services for gauge in found.gauges])
        began = time.process_time()
        for _ in range(SCRAPES):
            text = app.engine.metrics.text()
        return round((time.process_time() - began) / SCRAPES * 1e3, 1), len(text)


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m bench.metrics_cost", description="What metrics cost.")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    print(msgspec.json.encode(asyncio.run(measure(options.records, options.rounds))).decode())


if __name__ == "__main__":
    main()
