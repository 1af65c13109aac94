"""An installation of the release before marks is upgraded worker by worker, and has one owner from then on."""

from __future__ import annotations

import subprocess
from collections import Counter
from pathlib import Path

import httpx
import pytest

from engine.installation.mark import INSTALLATION_TOPIC
from tests.e2e.processes import ORDERS_OF_4FFE7DF, Running, Site
from tests.integration.web import order
from tests.kafka import KafkaBroker, unused_port
from tests.release_data import RELEASE as BEFORE_MARKS
from tests.release_data import checked_out

PRODUCT = "SKU-1"

pytestmark = pytest.mark.slow


@pytest.fixture
def old_release(tmp_path: Path) -> str:
    """The folder of a checkout of the last release that wrote no marks; skips where git has no history."""
    try:
        return checked_out(BEFORE_MARKS, tmp_path / "old")
    except subprocess.CalledProcessError:
        pytest.skip(f"the history of this checkout does not reach back to {BEFORE_MARKS}")


def place(site: Site, worker: Running, name: str) -> None:
    """Place an order at one worker, and wait until its saga has confirmed it."""
    answer = httpx.post(f"{site.url}/orders", json=order(order_id=name), timeout=30)
    assert answer.status_code == 202, answer.text
    path = f"/orders/{name}"
    worker.wait_until(
        lambda: site.status(path) == 200 and site.get(path)["status"] == "confirmed", f"{name} is confirmed"
    )


def refused(site: Site) -> str:
    """Start a worker that must end by itself; the one line in which it says why."""
    done = site.run("worker")
    assert done.returncode == 1, done.stdout + done.stderr
    (line,) = [line for line in (done.stdout + done.stderr).splitlines() if "CRITICAL" in line]
    assert "Traceback" not in done.stdout + done.stderr
    return line


def test_an_installation_without_a_mark_gets_it_while_it_is_upgraded_worker_by_worker(
    private_kafka_broker: KafkaBroker, old_release: str, tmp_path: Path
) -> None:
    broker = f"kafka://{private_kafka_broker.bootstrap}"
    for name in ("a", "b", "other"):
        (tmp_path / name).mkdir()
    a, b = (Site(tmp_path / name, unused_port(), broker=broker) for name in ("a", "b"))
    other = Site(tmp_path / "other", unused_port(), broker=broker, app_id="other")
    with (
        a.start("worker", command=ORDERS_OF_4FFE7DF, PYTHONPATH=old_release) as old_a,
        b.start("worker", command=ORDERS_OF_4FFE7DF, PYTHONPATH=old_release) as old_b,
    ):
        old_a.wait_until_ready()
        old_b.wait_until_ready()
        assert httpx.put(f"{a.url}/inventory/{PRODUCT}", json={"quantity": 50}).status_code == 202
        place(a, old_a, "old")
        said = refused(other)
        assert "'orders', which has written no mark yet" in said
        assert old_b.stop() == 0
        with b.start("worker") as new_b:
            new_b.wait_until_ready()
            place(b, new_b, "beside-new")
            place(a, old_a, "beside-old")
            said = refused(other)
            for named in ("'orders' (installation", "ORDERS_APP_ID=orders", "orders adopt --reason TEXT"):
                assert named in said
            examined = b.run("doctor")
            assert "owner: application 'orders'" in examined.stdout
            assert old_a.stop() == 0
            with a.start("worker") as new_a:
                new_a.wait_until_ready()
                place(a, new_a, "new")
                assert_once(a, "order-events", {"order.placed", "order.confirmed"})
                assert_once(a, "payment-events", {"payment.received"})
                assert new_a.stop() == 0
    marks = {path.read_text() for path in tmp_path.glob("*/data/stores/installation.json")}
    assert len(marks) == 1, f"both folders belong to the installation in the topic {INSTALLATION_TOPIC}"


def assert_once(site: Site, topic: str, types: set[str]) -> None:
    """Each order has each of these events once."""
    found: Counter[tuple[str, str]] = Counter()
    for record in site.get(f"/topics/{topic}/records", limit=1000)["items"]:
        found[record["key"], record["value"]["eventType"]] += 1
    expected = {(name, kind) for name in ("old", "beside-new", "beside-old", "new") for kind in types}
    assert {pair: count for pair, count in found.items() if pair[1] in types} == dict.fromkeys(expected, 1)
