"""Order placed to visible: the time from POST /orders until GET /orders/{id} shows the order.

One worker on Kafka, orders at a steady rate (an open loop: a slow answer does not slow the next request down), each
read with its token. `p50_ms` and `p99_ms` are over all orders after a warm-up of 10 s.

    python -m bench.latency [--rate 200] [--seconds 30] [--bootstrap localhost:9092]
"""

import argparse
import asyncio
import statistics
import tempfile
import time
from pathlib import Path

import aiohttp
import msgspec

from bench.broker import running_broker
from bench.systems import WORK_DIR
from bench.workers import running_worker

WARM_UP_S = 10.0
ORDER = {
    "customer_id": "customer-1",
    "items": [{"product_id": "SKU-1", "quantity": 2, "price": {"amount": "19.99", "currency": "USD"}}],
}


class Latency(msgspec.Struct, frozen=True):
    """One line of output; times are milliseconds."""

    benchmark: str
    rate_per_s: int
    orders: int
    p50_ms: float
    p99_ms: float
    max_ms: float


async def place_and_see(session: aiohttp.ClientSession, url: str) -> float:
    """Place one order and read it back with its token; seconds from the first byte sent to the order received."""
    started = time.perf_counter()
    async with session.post(f"{url}/orders", json=ORDER) as answer:
        answer.raise_for_status()
        placed = await answer.json()
    async with session.get(f"{url}/orders/{placed['order_id']}", params={"after": placed["token"]}) as answer:
        answer.raise_for_status()
        order = await answer.json()
    if order["status"] != "pending":
        raise RuntimeError(f"unexpected order {order}")
    return time.perf_counter() - started


async def measure(url: str, rate_per_s: int, seconds: float) -> list[float]:
    """Latencies in seconds at `rate_per_s`, in the order the orders were placed."""
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        started, tasks = time.perf_counter(), []
        for number in range(int(rate_per_s * seconds)):
            await asyncio.sleep(max(0.0, started + number / rate_per_s - time.perf_counter()))
            tasks.append(asyncio.create_task(place_and_see(session, url)))
        return await asyncio.gather(*tasks)


async def run(bootstrap: str, rate_per_s: int, seconds: float) -> Latency:
    """Measure one worker on the broker at `bootstrap`."""
    with tempfile.TemporaryDirectory(prefix="latency-") as folder:
        environment = {"ORDERS_BROKER": f"kafka://{bootstrap}", "ORDERS_LOG_LEVEL": "WARNING", "ORDERS_SAGA": "none"}
        async with running_worker(Path(folder) / "data", environment) as (url, _):
            await measure(url, rate_per_s, WARM_UP_S)
            latencies = [second * 1000 for second in await measure(url, rate_per_s, seconds)]
    cuts = statistics.quantiles(latencies, n=100)
    return Latency(
        "placed-to-visible",
        rate_per_s,
        len(latencies),
        round(cuts[49], 2),
        round(cuts[98], 2),
        round(max(latencies), 2),
    )


def main() -> None:
    """Print one JSON line."""
    parser = argparse.ArgumentParser(prog="python -m bench.latency", description=__doc__)
    parser.add_argument("--rate", type=int, default=200)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--bootstrap")
    arguments = parser.parse_args()
    WORK_DIR.mkdir(exist_ok=True)
    with running_broker(arguments.bootstrap, WORK_DIR) as bootstrap:
        result = asyncio.run(run(bootstrap, arguments.rate, arguments.seconds))
    print(msgspec.json.encode(result).decode(), flush=True)


if __name__ == "__main__":
    main()
