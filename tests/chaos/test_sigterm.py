"""SIGTERM while orders come as fast as they can: the worker commits and ends within 10 s; the rest comes afterwards."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tests.chaos.faults import STOP_TIMEOUT_S, Worker
from tests.chaos.verifier import COMMANDS, EVENTS
from tests.chaos.workload import is_processed
from tests.chaos.world import EmbeddedSource, KafkaSource, World
from tests.kafka import KafkaBroker

BATCH = 200
ENOUGH = 2000
CLIENTS = 3
SETTLE_TIMEOUT_S = 60.0

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def broker(request: pytest.FixtureRequest) -> KafkaBroker | None:
    """Give a Kafka, or none for the embedded log."""
    if request.param == "embedded":
        return None
    found: KafkaBroker = request.getfixturevalue("private_kafka_broker")
    return found


def lines(first: int) -> str:
    """A batch of orders."""
    item = {"product_id": "SKU-1", "quantity": 1, "price": {"amount": "1.00", "currency": "EUR"}}
    return "\n".join(
        json.dumps({"order_id": f"o-{number}", "customer_id": f"c-{number % 50}", "items": [item]})
        for number in range(first, first + BATCH)
    )


async def pour(worker: Worker, client: int, accepted: set[str]) -> None:
    """Place batch after batch until nobody answers any more; `accepted` gets the ids that the worker took."""
    first = client * 1_000_000
    async with aiohttp.ClientSession() as http:
        while True:
            try:
                async with http.post(f"{worker.url}/orders/batch", data=lines(first)) as answer:
                    if answer.status == 202:
                        found = await answer.json()
                        assert found["accepted"] == BATCH, found
                        accepted.update(f"o-{number}" for number in range(first, first + BATCH))
                    elif answer.status != 503:
                        raise AssertionError(f"{answer.status}: {await answer.text()}")
            except (aiohttp.ClientError, OSError):
                return
            first += BATCH


async def read(worker: Worker, broker: KafkaBroker | None) -> World:
    """Everything there is, while the worker does not run."""
    source = EmbeddedSource(worker.data_dir) if broker is None else KafkaSource(broker.bootstrap)
    try:
        return await World.read(source, ())
    finally:
        await source.close()


def positions(world: World) -> dict[int, int]:
    """How far orders are decided, by partition."""
    rows = {number: map(json.loads, world.rows("positions", number).values()) for number in world.partitions()}
    return {n: row["offset"] for n, found in rows.items() for row in found if row["agent"] == "decide-orders"}


def ids_of(values: list[dict[str, Any]], *path: str) -> Counter[str]:
    """How often each id is there."""
    found: Counter[str] = Counter()
    for value in values:
        for name in path:
            value = value[name]
        found[str(value)] += 1
    return found


async def test_a_worker_that_is_told_to_stop_under_load_commits_and_ends_in_time(
    broker: KafkaBroker | None, tmp_path: Path
) -> None:
    url = "embedded://" if broker is None else f"kafka://{broker.bootstrap}"
    worker = Worker("w1", tmp_path / "w1", url, {"ORDERS_SAGA": "none"})
    accepted: set[str] = set()
    try:
        worker.start()
        await worker.ready()
        pouring = [asyncio.create_task(pour(worker, client, accepted)) for client in range(CLIENTS)]
        while len(accepted) < ENOUGH and not any(client.done() for client in pouring):
            await asyncio.sleep(0.05)
        seconds = await asyncio.to_thread(worker.stop)
        await asyncio.gather(*pouring)
        assert seconds < STOP_TIMEOUT_S

        world = await read(worker, broker)
        reached = positions(world)
        commands = [record.body for record in world.records(COMMANDS) if record.offset < reached[record.partition]]
        caused = ids_of([record.body for record in world.records(EVENTS)], "metadata", "causationId")
        assert caused == ids_of(commands, "eventId"), "events and positions were committed together"
        assert caused, "it was under way"

        worker.start()
        await until_processed(worker, broker)
        await asyncio.to_thread(worker.stop)
        world = await read(worker, broker)
    finally:
        worker.kill()
    placed = ids_of([record.body for record in world.records(EVENTS)], "aggregateId")
    assert accepted <= placed.keys(), "nothing that was accepted is lost"
    assert set(placed.values()) == {1}, "nothing is placed twice"
    assert is_processed(world)


async def until_processed(worker: Worker, broker: KafkaBroker | None) -> None:
    """Wait until the worker has handled what there is."""
    await worker.ready()
    async with asyncio.timeout(SETTLE_TIMEOUT_S), aiohttp.ClientSession() as http:
        while True:
            async with http.get(f"{worker.url}/metrics") as answer:
                lags = [line for line in (await answer.text()).splitlines() if line.startswith("consumer_lag_records{")]
            if lags and all(float(line.rpartition(" ")[2]) == 0 for line in lags):
                return
            await asyncio.sleep(0.2)
