"""The data of an earlier release, kept small in tests/data: what it wrote, and how it answered.

`python -m tests.release_data 4ffe7df` makes it anew: it checks that release out of git's history, lets one worker of it
work on the embedded log and on Kafka, and packs the folders of both with the answers.
"""

from __future__ import annotations

import io
import json
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

import httpx

from tests.e2e.processes import ORDERS_OF_4FFE7DF, REPOSITORY, Running, Site
from tests.integration.web import order
from tests.kafka import KafkaBroker, unused_port

DATA: Final = Path(__file__).parent / "data"
RELEASE: Final = "4ffe7df"
ORDERS: Final = ("confirmed", "cancelled", "shipped", "no-stock")
CUSTOMER: Final = "customer-1"
PRODUCT: Final = "SKU-1"
SCARCE: Final = "SKU-2"
PARTITIONS: Final = 1
VIEWS: Final = ("", "/events", "/story", "/state?version=1", "/notifications")
PATHS: Final = (
    "/orders",
    *(
        f"/orders/{name}{view}"
        for name in ORDERS
        for view in ("", "/events", "/story", "/state?version=1", "/notifications")
    ),
    *(f"/sagas/{name}" for name in ORDERS),
    *(f"/payments/{name}" for name in ORDERS if name != "no-stock"),
    f"/customers/{CUSTOMER}",
    f"/customers/{CUSTOMER}/orders",
    f"/inventory/{PRODUCT}",
    "/analytics/summary",
    "/analytics/daily",
    "/analytics/countries",
    "/analytics/products",
    "/analytics/reconciliation",
    "/dead-letters",
    "/dead-letters/groups",
    "/aggregates/waiting",
    "/tables/orders",
    "/tables/order-history",
    "/tables/sagas",
)
# Written by the release's own code: a command that cannot be read, which becomes a dead letter.
BROKEN_COMMAND: Final = """
import asyncio
from streams.app import create_app

async def main():
    engine = create_app().engine
    await engine.broker.start()
    await engine.broker.publish("order-commands", 0, [(b"broken", b"no envelope", ())])
    await engine.broker.stop()

asyncio.run(main())
"""


def packed(kind: str) -> Path:
    """The archive of what the release wrote, with `kind` embedded or kafka."""
    return DATA / f"release-{RELEASE}-{kind}.tar.xz"


def answers_of(kind: str) -> Path:
    """The file of how the release answered."""
    return DATA / f"release-{RELEASE}-{kind}.json"


def unpack(kind: str, folder: Path) -> None:
    """Put what the release wrote into a folder: `data` of the worker, and `kafka` of the broker."""
    with tarfile.open(packed(kind)) as files:
        files.extractall(folder, filter="data")


def site_of(folder: Path, broker: str) -> Site:
    """A worker on the data of the release, with the settings that it had."""
    return Site(folder, unused_port(), broker=broker, partitions=PARTITIONS, retry_count=0)


def answers(site: Site) -> dict[str, Any]:
    """What a worker answers at each path."""
    return {path: site.get(path) for path in PATHS}


def checked_out(release: str, folder: Path) -> str:
    """The folder of a checkout of a release."""
    archive = subprocess.run(["git", "archive", release], cwd=REPOSITORY, capture_output=True, check=True)
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as files:
        files.extractall(folder, filter="data")
    return str(folder)


def _work(site: Site, worker: Running) -> None:
    """Let a worker take orders of every fate, and a command that becomes a dead letter."""
    put = httpx.put(f"{site.url}/inventory/{PRODUCT}", json={"quantity": 50})
    assert put.status_code == 202, put.text
    items = [{"product_id": SCARCE, "quantity": 1, "price": {"amount": "2.00", "currency": "USD"}}]
    for name in ORDERS:
        body = order(CUSTOMER, name, country="France") | ({"items": items} if name == "no-stock" else {})
        assert httpx.post(f"{site.url}/orders", json=body, timeout=30).status_code == 202
        expected = "cancelled" if name == "no-stock" else "confirmed"
        worker.wait_until(partial(_has_status, site, name, expected), f"{name} is {expected}")
    assert httpx.post(f"{site.url}/orders/cancelled/cancel", json={"reason": "changed my mind"}).status_code == 202
    worker.wait_until(lambda: site.get("/payments/cancelled")["status"] == "refunded", "the money is back")
    assert httpx.post(f"{site.url}/orders/shipped/ship", json={}).status_code == 202
    worker.wait_until(lambda: site.get("/orders/shipped")["shipped_at"], "shipped")
    worker.wait_until(lambda: _at_rest(site), "nothing is under way")


def _has_status(site: Site, name: str, status: str) -> bool:
    return site.status(f"/orders/{name}") == 200 and bool(site.get(f"/orders/{name}")["status"] == status)


def _at_rest(site: Site) -> bool:
    lines = httpx.get(f"{site.url}/metrics").text.splitlines()
    lags = [float(line.rpartition(" ")[2]) for line in lines if "lag_records" in line and not line.startswith("#")]
    return bool(lags) and not any(lags)


@contextmanager
def _broker(kind: str, folder: Path) -> Iterator[str]:
    """The address of a log; what Kafka has on disk is packed once its broker has stopped."""
    if kind == "embedded":
        yield "embedded://"
        return
    with KafkaBroker(folder / "kafka") as broker:
        yield f"kafka://{broker.bootstrap}"
    _pack(kind, folder)


def _pack(kind: str, folder: Path) -> None:
    with tarfile.open(packed(kind), "w:xz") as files:
        for name in ("data", "kafka/data"):
            if (folder / name).is_dir():
                files.add(folder / name, name)


def make(kind: str, release: str) -> None:
    """Make the data of a release anew, on one log."""
    with tempfile.TemporaryDirectory() as temporary, _broker(kind, Path(temporary)) as broker:
        folder = Path(temporary)
        site, old = site_of(folder, broker), checked_out(release, folder / "release")
        with site.start("worker", command=ORDERS_OF_4FFE7DF, PYTHONPATH=old) as worker:
            worker.wait_until_ready()
            _work(site, worker)
            assert worker.stop() == 0
        subprocess.run([sys.executable, "-c", BROKEN_COMMAND], env=site.environment({"PYTHONPATH": old}), check=True)
        with site.start("worker", command=ORDERS_OF_4FFE7DF, PYTHONPATH=old) as worker:
            worker.wait_until_ready()
            worker.wait_until(lambda: site.get("/dead-letters")["items"], "a dead letter")
            worker.wait_until(lambda: _at_rest(site), "nothing is under way")
            answers_of(kind).write_text(json.dumps(answers(site), indent=1, sort_keys=True) + "\n")
            assert worker.stop() == 0
        if kind == "embedded":
            _pack(kind, folder)
    print(packed(kind), packed(kind).stat().st_size, "bytes")


if __name__ == "__main__":
    for each in ("embedded", "kafka"):
        make(each, sys.argv[1])
