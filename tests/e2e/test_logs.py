"""The log of a real worker process: JSON in every line, and calm while a collector is away."""

from __future__ import annotations

import json
import time
from pathlib import Path

import httpx

from tests.e2e.processes import Site
from tests.integration.web import order
from tests.kafka import unused_port


def test_a_collector_that_is_away_neither_stops_the_worker_nor_floods_its_log(tmp_path: Path) -> None:
    site = Site(tmp_path, unused_port(), broker="memory://", log_format="json")
    away = {"OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{unused_port()}"}
    often = {"OTEL_BSP_SCHEDULE_DELAY": "10", "OTEL_BSP_MAX_QUEUE_SIZE": "64", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE": "8"}
    with site.start("worker", **away, **often) as worker:
        worker.wait_until_ready()
        with httpx.Client(base_url=site.url) as client:
            for number in range(100):
                assert client.post("/orders", json=order(order_id=f"o-{number}")).status_code == 202
            waited = client.post("/orders?wait=10s", json=order(order_id="last"))
        assert waited.status_code == 201
        began = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - began < 6
        lines = [json.loads(line) for line in worker.output.splitlines()]
    assert all({"timestamp", "level", "logger", "message"} <= line.keys() for line in lines)
    assert "tracing is on" in [line["message"] for line in lines]
    theirs = [line for line in lines if line["logger"].startswith("opentelemetry")]
    assert 1 <= len(theirs) <= 5, theirs


def test_an_exporter_that_is_not_there_is_refused_in_one_line(tmp_path: Path) -> None:
    refused = Site(tmp_path, unused_port(), broker="memory://").run("worker", OTEL_TRACES_EXPORTER="zipkin")
    assert refused.returncode == 1
    (said,) = refused.stderr.splitlines()
    assert "OTEL_TRACES_EXPORTER=zipkin: must be otlp or none" in said
