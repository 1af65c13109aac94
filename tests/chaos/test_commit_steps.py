"""The process is killed before and after each of the commit's steps 2 to 6: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.chaos.driver import Driver
from tests.chaos.faults import Worker
from tests.chaos.orders import Order
from tests.chaos.scenario import settle, settled_embedded, stores_of
from tests.chaos.verifier import check_stores, find_problems
from tests.chaos.world import KafkaSource, World
from tests.kafka import KafkaBroker

# Before one step is after the one before, but for the first.
STEPS = ("before 2", "after 2", "after 3", "after 4", "after 5", "after 6")
KILLED_WORKER = ("-m", "tests.chaos.killed_worker")
SETTINGS = {"ORDERS_SESSION_TIMEOUT": "1"}
KILL_COMMIT = 5  # some partitions have committed by then, others have not
ORDERS_AT_ONCE = 20
DEADLINE_S = 60.0

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


async def test_a_worker_killed_at_any_step_of_a_commit_loses_and_repeats_nothing_on_the_embedded_log(
    tmp_path: Path,
) -> None:
    worker = Worker("w1", tmp_path, "embedded://", SETTINGS)

    async def processed(orders: list[Order]) -> World:
        return await settled_embedded(worker, orders)

    try:
        await kill_at_every_step(worker, None, processed)
    finally:
        worker.kill()


async def test_a_worker_killed_at_any_step_of_a_commit_loses_and_repeats_nothing_on_kafka(
    private_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    worker = Worker("w1", tmp_path, f"kafka://{private_kafka_broker.bootstrap}", SETTINGS)
    source = KafkaSource(private_kafka_broker.bootstrap)
    world = World([])

    async def processed(orders: list[Order]) -> World:
        world.orders = orders
        await settle(world, source, [worker])
        await worker.ready()
        await asyncio.to_thread(worker.stop)
        return world

    try:
        await kill_at_every_step(worker, private_kafka_broker.bootstrap, processed)
    finally:
        await source.close()
        worker.kill()


async def kill_at_every_step(
    worker: Worker, bootstrap: str | None, processed: Callable[[list[Order]], Awaitable[World]]
) -> None:
    """Kill the worker at one step after the other, each time with new orders, and verify everything each time.

    `processed` waits until the running worker is through, stops it and reads the topics.
    """
    orders: list[Order] = []
    for number, step in enumerate(STEPS, start=1):
        async with Driver(number, lambda: [worker.url], bootstrap, 0.0, 1.0) as driver:
            await kill_at(step, worker, driver)
            worker.start()
            await driver.finish()
        orders += driver.orders
        world = await processed(orders)
        problems = find_problems(world)
        if wrong := check_stores(world, stores_of(worker, world.partitions(), world), "live"):
            problems["check_stores"] = wrong
        assert not problems, f"killed {step}: {problems}\n{worker.log_tail()}"


async def kill_at(step: str, worker: Worker, driver: Driver) -> None:
    """Start a worker that kills itself at `step`, and give it orders until it does."""
    armed = worker.folder / f"armed {step}"
    environment = {"KILL_STEP": step, "KILL_COMMIT": str(KILL_COMMIT), "KILL_WHEN": str(armed)}
    worker.start(KILLED_WORKER, environment)
    await worker.ready()
    armed.touch()
    end = asyncio.create_task(asyncio.to_thread(worker.wait, DEADLINE_S))
    while not end.done():
        await driver.begin(ORDERS_AT_ONCE)
        await asyncio.wait([end], timeout=0.1)
    assert end.result() == -signal.SIGKILL, worker.log_tail()
