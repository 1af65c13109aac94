"""Reads: `GET /orders/{id}` of one worker on the embedded log with many orders.

A JSON line for each figure:

- `reads`: requests/s for random orders on an idle worker, beside a bare aiohttp handler that answers a constant of the
  same size, in turns; `wrk` asks both, with one thread and 64 connections. `share` is ours by theirs, of the medians.
- `reads-while-busy`: the worker takes orders through their whole saga at full speed meanwhile. Requests come at a
  steady rate, an open loop: the time of each is from when it was due until its answer is there. Refused when the worker
  has no orders left to process before the last request.

    python -m bench.reads [--orders 100000] [--rounds 3] [--rate 200]
"""

import argparse
import asyncio
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import msgspec

from bench.full_order import ENVIRONMENT, body
from bench.full_order_records import PRODUCTS, Refused
from bench.systems import ROOT, WORK_DIR
from bench.workers import free_port, running_worker

BATCH = 2000
CONNECTIONS = 64
ROUND_S = 5.0
WARM_UP_ROUNDS = 4  # most orders have been read once by then, as in a worker that has run for a while
BUSY_ORDERS = 40_000
BUSY_S = 10.0
_RATE = re.compile(r"^Requests/sec:\s+([0-9.]+)$", re.MULTILINE)
_SCRIPT = """
request = function() return wrk.format("GET", "/orders/e-" .. math.random(0, {orders} - 1)) end
"""


class Reads(msgspec.Struct, frozen=True):
    """One line of output."""

    benchmark: str
    orders: int
    answer_bytes: int
    requests_per_s: int
    bare_requests_per_s: int
    share: float


class Busy(msgspec.Struct, frozen=True):
    """One line of output; times are milliseconds."""

    benchmark: str
    orders: int
    rate_per_s: int
    requests: int
    p50_ms: float
    p99_ms: float
    max_ms: float


async def place(session: aiohttp.ClientSession, url: str, first: int, count: int) -> None:
    """Place orders with the numbers from `first` on, and return when they are in the log."""
    for start in range(first, first + count, BATCH):
        lines = [body(number) for number in range(start, min(start + BATCH, first + count))]
        async with session.post(f"{url}/orders/batch", data=b"\n".join(lines)) as answer:
            answer.raise_for_status()


async def fill(data_dir: Path, orders: int) -> int:
    """Place the orders to be read; returns the size of an answer."""
    environment = ENVIRONMENT | {"ORDERS_BROKER": "embedded://", "ORDERS_SAGA": "none"}
    async with running_worker(data_dir, environment) as (url, _), aiohttp.ClientSession() as session:
        await place(session, url, 0, orders)
        async with asyncio.timeout(300):
            while await _placed(session, url) < orders:
                await asyncio.sleep(0.2)
        async with session.get(f"{url}/orders/e-{orders - 1}") as answer:
            answer.raise_for_status()
            return len(await answer.read())


async def _placed(session: aiohttp.ClientSession, url: str) -> int:
    async with session.get(f"{url}/analytics/summary") as answer:
        answer.raise_for_status()
        return int((await answer.json())["funnel"][0]["count"])


@asynccontextmanager
async def bare_server(size: int) -> AsyncIterator[str]:
    """The bare handler in a process of its own; gives its address."""
    port = free_port()
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.bare_server", str(port), str(size), cwd=ROOT
    )
    url = f"http://127.0.0.1:{port}"
    try:
        async with aiohttp.ClientSession() as session, asyncio.timeout(20):
            while True:
                try:
                    async with session.get(url) as answer:
                        answer.raise_for_status()
                        break
                except aiohttp.ClientConnectionError:
                    await asyncio.sleep(0.05)
        yield url
    finally:
        process.terminate()
        await process.wait()


async def wrk(url: str, *arguments: str) -> float:
    """Requests/s that `wrk` gets answered; refused when an answer is not 2xx."""
    command = ("wrk", "-t1", f"-c{CONNECTIONS}", f"-d{ROUND_S:.0f}s", *arguments, url)
    process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.PIPE)
    output = (await process.communicate())[0].decode()
    rate = _RATE.search(output)
    if rate is None or "Non-2xx" in output or "Socket errors" in output:
        raise Refused(f"{' '.join(command)}: {output}")
    return float(rate[1])


async def reads(url: str, folder: Path, orders: int, size: int, rounds: int) -> Reads:
    """Ask the worker and the bare handler in turns."""
    script = folder / "orders.lua"
    script.write_text(_SCRIPT.format(orders=orders))
    ours, bare = [], []
    for _ in range(WARM_UP_ROUNDS):
        await wrk(url, "-s", str(script))
    async with bare_server(size) as bare_url:
        for _ in range(rounds):
            bare.append(await wrk(bare_url))
            ours.append(await wrk(url, "-s", str(script)))
    median, bare_median = statistics.median(ours), statistics.median(bare)
    return Reads("reads", orders, size, round(median), round(bare_median), round(median / bare_median, 2))


async def busy(url: str, orders: int, rate_per_s: int) -> Busy:
    """Read orders at a steady rate while others go through their saga."""
    random.seed(0)
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        for number in range(PRODUCTS):
            async with session.put(f"{url}/inventory/p-{number}", json={"quantity": 10_000_000}) as answer:
                answer.raise_for_status()
        await place(session, url, orders, BUSY_ORDERS)
        started, tasks = time.perf_counter(), []
        for number in range(int(rate_per_s * BUSY_S)):
            due = started + number / rate_per_s
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            tasks.append(asyncio.create_task(_read(session, f"{url}/orders/e-{random.randrange(orders)}", due)))
        milliseconds = [seconds * 1000 for seconds in await asyncio.gather(*tasks)]
        async with session.get(f"{url}/orders/e-{orders + BUSY_ORDERS - 1}") as answer:
            if answer.status == 200 and (await answer.json())["status"] == "confirmed":
                raise Refused(f"the worker had no orders left before {BUSY_S:.0f} s were over")
    cuts = statistics.quantiles(milliseconds, n=100)
    p50, p99, longest = round(cuts[49], 1), round(cuts[98], 1), round(max(milliseconds), 1)
    return Busy("reads-while-busy", orders, rate_per_s, len(milliseconds), p50, p99, longest)


async def _read(session: aiohttp.ClientSession, url: str, due: float) -> float:
    async with session.get(url) as answer:
        answer.raise_for_status()
        await answer.read()
    return time.perf_counter() - due


async def run(arguments: argparse.Namespace) -> None:
    """Fill a worker's data folder, start it again, and print a line for each figure."""
    with tempfile.TemporaryDirectory(prefix="reads-", dir=WORK_DIR) as name:
        folder = Path(name)
        size = await fill(folder / "data", arguments.orders)
        async with running_worker(folder / "data", ENVIRONMENT | {"ORDERS_BROKER": "embedded://"}) as (url, _):
            show(await reads(url, folder, arguments.orders, size, arguments.rounds))
            show(await busy(url, arguments.orders, arguments.rate))


def show(result: msgspec.Struct) -> None:
    """Print a JSON line."""
    print(msgspec.json.encode(result).decode(), flush=True)


def main() -> None:
    """Print a JSON line for each figure."""
    parser = argparse.ArgumentParser(prog="python -m bench.reads", description=__doc__)
    parser.add_argument("--orders", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=int, default=200)
    arguments = parser.parse_args()
    if shutil.which("wrk") is None:
        parser.error("needs wrk on the path (Debian: apt-get install wrk)")
    WORK_DIR.mkdir(exist_ok=True)
    try:
        asyncio.run(run(arguments))
    except Refused as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
