"""The audit of a worker on the embedded log: orders go through their sagas, then every row is held against its events.

`records` are the events that were read: of orders, stock, payments, customers and answers, about ten for an order.
`busy` is an audit while further orders are processed at full speed, to which it yields. A figure is refused when the
audit finds a difference. Times are seconds, memory is the worker's peak.

    python -m bench.audit [--orders 100000] [--busy-orders 20000]
"""

import argparse
import asyncio
import sys
import tempfile
import time
from pathlib import Path

import aiohttp
import msgspec

from bench.full_order import ENVIRONMENT, completed
from bench.full_order_records import PRODUCTS, Refused
from bench.reads import place
from bench.systems import WORK_DIR
from bench.workers import running_worker
from cli.audit import audit_partitions, lines_of, status_of
from engine.cli.client import WorkerClient
from engine.cli.console import PlainSteps

SETTLE_TIMEOUT_S = 3600.0


class Audit(msgspec.Struct, frozen=True):
    """One line of output."""

    benchmark: str
    orders: int
    records: int
    rows: int
    seconds: float
    records_per_s: int
    memory_mib: float


async def stock(session: aiohttp.ClientSession, url: str) -> None:
    """Put enough pieces of every product on the shelf."""
    for number in range(PRODUCTS):
        async with session.put(f"{url}/inventory/p-{number}", json={"quantity": 1_000_000}) as answer:
            answer.raise_for_status()


async def settled(session: aiohttp.ClientSession, url: str, orders: int) -> None:
    """Wait until all orders are through their sagas."""
    async with asyncio.timeout(SETTLE_TIMEOUT_S):
        while await completed(session, url) < orders:
            await asyncio.sleep(0.5)


async def measure(benchmark: str, url: str, orders: int, pid: int) -> Audit:
    """One audit; raises Refused when anything differs."""
    began = time.perf_counter()
    async with WorkerClient(url) as client:
        found = {"partitions": await audit_partitions(client, PlainSteps(lambda text: None))}
    seconds = time.perf_counter() - began
    if status_of(found):
        raise Refused("\n".join(lines_of(found)))
    records = sum(part["records"] for part in found["partitions"])
    rows = sum(part["rows"] for part in found["partitions"])
    return Audit(benchmark, orders, records, rows, round(seconds, 1), round(records / seconds), peak_mib(pid))


def peak_mib(pid: int) -> float:
    """The most memory that a process ever had, in MiB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return round(next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) / 1024, 1)


async def run(orders: int, busy_orders: int) -> None:
    """Fill a log, and audit it: at rest, and while orders come in."""
    WORK_DIR.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=WORK_DIR) as folder:
        environment = ENVIRONMENT | {"ORDERS_BROKER": "embedded://"}
        async with (
            running_worker(Path(folder) / "data", environment) as (url, process),
            aiohttp.ClientSession() as session,
        ):
            await stock(session, url)
            await place(session, url, 0, orders)
            await settled(session, url, orders)
            print(msgspec.json.encode(await measure("audit", url, orders, process.pid)).decode(), flush=True)
            await place(session, url, orders, busy_orders)
            print(msgspec.json.encode(await measure("audit-while-busy", url, orders, process.pid)).decode(), flush=True)


def main() -> int:
    """Run it; non-zero when a figure is refused."""
    parser = argparse.ArgumentParser(prog="python -m bench.audit", description=__doc__)
    parser.add_argument("--orders", type=int, default=100_000)
    parser.add_argument("--busy-orders", type=int, default=20_000)
    arguments = parser.parse_args()
    try:
        asyncio.run(run(arguments.orders, arguments.busy_orders))
    except Refused as refused:
        print(refused, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
