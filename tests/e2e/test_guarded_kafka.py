"""A worker and the commands on a Kafka that wants TLS and a login, as processes of their own."""

from __future__ import annotations

from pathlib import Path

import httpx

from tests.apps import unique
from tests.e2e.processes import FAUST, Site
from tests.guarded_kafka import PASSWORD, GuardedKafka


def test_an_order_goes_through_its_saga_over_tls_with_a_login(
    guarded_kafka: GuardedKafka, tmp_path: Path, unused_port: int
) -> None:
    site = Site(tmp_path, unused_port, app_id=unique("guarded"), **guarded_kafka.settings("SAFE"))
    with site.start("worker", command=FAUST) as worker:
        worker.wait_until_ready()
        assert httpx.put(f"{site.url}/inventory/SKU-1", json={"quantity": 5}).status_code == 202
        placed = site.run("place", "--customer", "c-1", "--order-id", "guarded-1", "--item", "SKU-1:2:1.50:USD")
        assert placed.returncode == 0, placed.stderr
        worker.wait_until(lambda: site.get("/orders/guarded-1")["status"] == "confirmed", "the order is confirmed")
        assert site.get("/inventory/SKU-1")["reserved"] == 2
        for command in (
            ("doctor",),
            ("topics",),
            ("tail", "order-events", "--from-beginning", "--max", "2"),
        ):
            done = site.run(*command)
            assert done.returncode == 0, done.stdout + done.stderr
            assert PASSWORD not in done.stdout + done.stderr
        assert worker.stop() == 0
        assert PASSWORD not in worker.output
    listed = site.run("topics")  # without a worker: straight from Kafka
    assert listed.returncode == 0, listed.stderr
    assert "order-events" in listed.stdout
    assert site.run("doctor").returncode == 0


def test_a_wrong_password_ends_the_worker_and_the_commands_with_what_to_check(
    guarded_kafka: GuardedKafka, tmp_path: Path, unused_port: int
) -> None:
    settings = {**guarded_kafka.settings("SAFE"), "kafka_sasl_plain_password": "wrong-one"}
    site = Site(tmp_path, unused_port, **settings)
    for command in (("worker",), ("doctor",), ("topics",), ("tail",)):
        done = site.run(*command)
        said = done.stdout + done.stderr
        assert done.returncode == 1, said
        assert "ORDERS_KAFKA_SASL_PLAIN_PASSWORD" in said
        assert "Traceback" not in said
        assert "wrong-one" not in said
