"""A disk that is full: a size limit on every file the worker writes."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.e2e.processes import ORDERS, Site

FILE_BYTES_MAX = 1 << 20
BATCH_ORDERS = 200


def limited() -> tuple[str, ...]:
    """The command line under a limit on the size of files, as POSIX shells count it: blocks of 512 bytes."""
    return ("sh", "-c", f'ulimit -f {FILE_BYTES_MAX // 512}; exec "$@"', "sh", *ORDERS)


def batch(first: int) -> bytes:
    """Orders as NDJSON, their ids counting from `first`."""
    line = (
        '{"order_id": "full-%06d", "customer_id": "customer-%d", "items": '
        '[{"product_id": "SKU-1", "quantity": 1, "price": {"amount": "1.00", "currency": "EUR"}}]}'
    )
    return "\n".join(line % (number, number % 10) for number in range(first, first + BATCH_ORDERS)).encode()


def fill(site: Site) -> int:
    """Place orders until the worker refuses; how many it had accepted, in batches that count as a whole."""
    for accepted in itertools.count(step=BATCH_ORDERS):
        answer = httpx.post(f"{site.url}/orders/batch", content=batch(accepted), timeout=30)
        if answer.status_code != 202:
            assert answer.status_code == 503, answer.text
            assert answer.headers["content-type"].startswith("application/problem+json")
            return accepted
    raise AssertionError("unreachable")


def test_a_full_disk_is_a_clear_error_and_nothing_that_was_accepted_is_lost(tmp_path: Path, unused_port: int) -> None:
    site = Site(tmp_path, unused_port)
    with site.start("worker", command=limited()) as worker:
        worker.wait_until_ready()
        accepted = fill(site)
        assert accepted > 0
        assert site.status("/healthz") is not None, "the worker stays up"
        said = worker.output
        worker.process.kill()
    assert "Traceback" not in said
    assert "space" in said or "disk" in said, said

    with site.start("worker") as worker:
        worker.wait_until_ready()
        worker.wait_until(lambda: count_orders(site) >= accepted, f"all {accepted} accepted orders are there")
        # The batch that was refused may have got into some partitions and not into others: its answer says so.
        assert accepted <= count_orders(site) <= accepted + BATCH_ORDERS
        assert worker.stop() == 0


def count_orders(site: Site) -> int:
    """Rows of the orders table."""
    tables = {table["name"]: table for table in site.get("/tables")["items"]}
    return int(tables["orders"]["rows"])


SMALL_DISK_BYTES = 64 << 20


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own for the data folder; only root may mount one."""
    folder = tmp_path / "small-disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(folder)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no disk of its own can be mounted: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def post(site: Site, first: int) -> httpx.Response:
    return httpx.post(f"{site.url}/orders/batch", content=batch(first), timeout=30)


def test_before_the_disk_is_full_nothing_more_is_taken_and_with_room_all_goes_on(
    small_disk: Path, tmp_path: Path, unused_port: int
) -> None:
    site = Site(tmp_path, unused_port, data_dir=small_disk)
    ballast = small_disk / "ballast"
    with site.start("worker") as worker:
        worker.wait_until_ready()
        assert post(site, 0).status_code == 202
        worker.wait_until(lambda: count_orders(site) == BATCH_ORDERS, "the first orders are there")
        ballast.write_bytes(bytes(shutil.disk_usage(small_disk).free - (2 << 20)))
        worker.wait_until(lambda: site.status("/readyz") == 503, "the worker notices")

        refused = post(site, BATCH_ORDERS)
        assert refused.status_code == 507
        assert "MiB are free" in refused.json()["detail"]
        health = httpx.get(f"{site.url}/healthz", timeout=5)
        assert health.status_code == 503
        assert "free space" in health.json()["detail"]
        assert site.get("/orders/full-000001")["order_id"] == "full-000001"  # reads go on

        ballast.unlink()
        worker.wait_until(lambda: site.status("/readyz") == 200, "it goes on by itself")
        assert site.status("/healthz") == 200
        assert post(site, BATCH_ORDERS).status_code == 202
        worker.wait_until(lambda: count_orders(site) == 2 * BATCH_ORDERS, "the next orders are there")
        assert worker.stop() == 0
        assert "Traceback" not in worker.output
