"""A worker and the commands on a Kafka that wants TLS and a login, as processes of their own."""

from __future__ import annotations

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from tests.apps import unique
from tests.e2e.processes import FAUST, Site
from tests.guarded_kafka import PASSWORD, GuardedKafka
from tests.integration.web import order


def run_at_once(site: Site, *commands: tuple[str, ...]) -> list[subprocess.CompletedProcess[str]]:
    """Run commands beside each other: most of their time is Python's start."""
    with ThreadPoolExecutor(len(commands)) as threads:
        return list(threads.map(lambda command: site.run(*command), commands))


def test_an_order_goes_through_its_saga_over_tls_with_a_login(
    guarded_kafka: GuardedKafka, tmp_path: Path, unused_port: int
) -> None:
    site = Site(tmp_path, unused_port, app_id=unique("guarded"), partitions=1, **guarded_kafka.settings("SAFE"))
    with site.start("worker", command=FAUST) as worker:
        worker.wait_until_ready()
        assert httpx.put(f"{site.url}/inventory/SKU-1", json={"quantity": 5}).status_code == 202
        placed = httpx.post(f"{site.url}/orders", json=order(order_id="guarded-1"))
        assert placed.status_code == 202, placed.text
        worker.wait_until(lambda: site.status("/orders/guarded-1") == 200, "the order is there")
        worker.wait_until(lambda: site.get("/orders/guarded-1")["status"] == "confirmed", "the order is confirmed")
        assert site.get("/inventory/SKU-1")["reserved"] == 2
        assert worker.stop() == 0
        assert PASSWORD not in worker.output
    # Without a worker they ask Kafka itself.
    doctor, topics, tail = run_at_once(
        site, ("doctor",), ("topics",), ("tail", "order-events", "--from-beginning", "--max", "2")
    )
    for done in (doctor, topics, tail):
        assert done.returncode == 0, done.stdout + done.stderr
        assert PASSWORD not in done.stdout + done.stderr
    assert "order-events" in topics.stdout
    assert [json.loads(line)["value"]["eventType"] for line in tail.stdout.splitlines()] == [
        "order.placed",
        "order.confirmed",
    ]


def test_a_wrong_password_ends_the_worker_and_the_commands_with_what_to_check(
    guarded_kafka: GuardedKafka, tmp_path: Path, unused_port: int
) -> None:
    settings = {**guarded_kafka.settings("SAFE"), "kafka_sasl_plain_password": "wrong-one"}
    for done in run_at_once(Site(tmp_path, unused_port, **settings), ("worker",), ("doctor",), ("topics",), ("tail",)):
        said = done.stdout + done.stderr
        assert done.returncode == 1, said
        assert "ORDERS_KAFKA_SASL_PLAIN_PASSWORD" in said
        assert "Traceback" not in said
        assert "wrong-one" not in said
