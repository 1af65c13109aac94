"""What `/metrics` says of a worker, and that nobody outside can make it say more."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from engine.faust.app import EngineApp
from streams.topics import ORDER_COMMANDS
from tests.apps import at_rest, caught_up, make_settings, publish, running, wait_until
from tests.integration.web import order, place


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[EngineApp]:
    async with running(make_settings("embedded://", tmp_path, saga="orchestration", payment_latency=30.0)) as app:
        yield app


async def families(client: httpx.AsyncClient) -> dict[str, Metric]:
    """The families of `/metrics` by name."""
    text = (await client.get("/metrics")).text
    return {family.name: family for family in text_string_to_metric_families(text)}


def value(found: dict[str, Metric], family: str, suffix: str = "", **labels: str) -> float:
    """Return the value of one sample."""
    (sample,) = (
        sample for sample in found[family].samples if sample.name == family + suffix and sample.labels == labels
    )
    return sample.value


async def test_series_are_there_before_anything_has_happened(app: EngineApp, client: httpx.AsyncClient) -> None:
    found = await families(client)
    for status in ("ok", "retry", "dead_letter"):
        assert value(found, "events_processed", "_total", type="order.place", status=status) == 0
    assert value(found, "event_processing_seconds", "_count", type="order.placed") == 0
    assert value(found, "retries", "_total", agent="decide-orders") == 0
    assert value(found, "saga_oldest_seconds", state="running") == 0
    assert value(found, "partitions_configured") == app.engine.settings.partitions
    assert value(found, "data_free_bytes") > 0
    assert value(found, "process_resident_memory_bytes") > 0


async def test_types_from_outside_make_no_series(app: EngineApp, client: httpx.AsyncClient) -> None:
    before = {tuple(sample.labels.values()) for sample in (await families(client))["events_processed"].samples}
    values = [b'{"eventId":"e-%d","eventType":"invented.%d"}' % (number, number) for number in range(20)]
    await publish(app, ORDER_COMMANDS, "o-1", *values)
    await at_rest(app)
    found = await families(client)
    assert {tuple(sample.labels.values()) for sample in found["events_processed"].samples} == before
    assert value(found, "events_processed", "_total", type="unknown", status="dead_letter") > 0
    assert "invented" not in (await client.get("/metrics")).text


async def test_commits_are_counted_with_their_records(app: EngineApp, client: httpx.AsyncClient) -> None:
    await place(client, order())
    await caught_up(app, "decide-orders")
    found = await families(client)
    assert value(found, "commit_records", "_count") == value(found, "commits", "_total") > 0
    assert value(found, "commit_records", "_sum") == value(found, "committed_records", "_total") > 0


async def test_a_blocked_event_loop_is_seen(app: EngineApp, client: httpx.AsyncClient) -> None:
    time.sleep(0.3)  # what is meant to be seen
    found = await families(client)
    late = value(found, "event_loop_delay_seconds", "_count") - value(
        found, "event_loop_delay_seconds", "_bucket", le="0.1"
    )
    assert late >= 1


async def test_a_saga_that_waits_grows_old(app: EngineApp, client: httpx.AsyncClient) -> None:
    await client.put("/inventory/SKU-1", json={"quantity": 10})
    await place(client, order())
    await wait_until(lambda: app.engine.circuits, "the payment is asked for")
    first = value(await families(client), "saga_oldest_seconds", state="running")
    again = value(await families(client), "saga_oldest_seconds", state="running")
    assert 0 < first < again < 30
    assert value(await families(client), "saga_oldest_seconds", state="compensating") == 0
