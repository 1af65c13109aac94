"""The process is killed or frozen at each of the commit's steps 2 to 6: nothing is lost, nothing is done twice."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from tests.chaos.driver import Driver
from tests.chaos.faults import Worker
from tests.chaos.orders import Order
from tests.chaos.scenario import settle, settled_embedded, stop_and_read_stores, stores_of
from tests.chaos.verifier import check_stores, find_problems
from tests.chaos.world import KafkaSource, World
from tests.kafka import KafkaBroker

# Before one step is after the one before, but for the first. On Kafka records are on their way after 3; after 4 the
# broker has acknowledged them all.
STEPS = ("before 2", "after 2", "after 3", "after 4", "after 5", "after 6")
FROZEN_AT = ("after 2", "after 4")  # nothing is sent yet, only the end is missing; long fault runs freeze at any moment
KILLED_WORKER = ("-m", "tests.chaos.killed_worker")
SETTINGS = {"ORDERS_SESSION_TIMEOUT": "1", "ORDERS_SAGA": "none"}
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
        await kill_at_every_step(STEPS, worker, None, processed)
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
        await kill_at_every_step(STEPS, worker, private_kafka_broker.bootstrap, processed)
    finally:
        await source.close()
        worker.kill()


async def test_a_worker_frozen_inside_a_commit_is_fenced_when_it_wakes_up_after_another_took_over(
    private_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    bootstrap = private_kafka_broker.bootstrap
    frozen, other = (Worker(name, tmp_path / name, f"kafka://{bootstrap}", SETTINGS) for name in ("frozen", "other"))
    source = KafkaSource(bootstrap)
    world = World([])
    try:
        for number, step in enumerate(FROZEN_AT, start=1):
            async with Driver(number, lambda: [other.url], bootstrap, 0.0, 1.0) as driver:
                await freeze_at(step, frozen, driver)
                other.start()
                await driver.finish()
                world.orders = [*world.orders, *driver.orders]
                await settle(world, source, [other])
                assert await other.ready() == world.partitions(), "the other has taken over"
                asked = len(driver.orders)
                frozen.thaw()
                await driver.begin(ORDERS_AT_ONCE)
                await driver.finish()
            world.orders = [*world.orders, *driver.orders[asked:]]
            await settle(world, source, [frozen, other])
            found = await problems_of_team(world, [frozen, other])
            assert not found, f"frozen {step}: {found}\n{frozen.log_tail()}\n{other.log_tail()}"
            assert "was fenced" in frozen.log_of_this_life(), f"frozen {step}\n{frozen.log_tail()}"
    finally:
        await source.close()
        frozen.kill()
        other.kill()


async def problems_of_team(world: World, team: Sequence[Worker]) -> dict[str, list[str]]:
    """What the verifier finds in topics, tables and the stores of the workers, who are stopped."""
    found = find_problems(world)
    if wrong := check_stores(world, await stop_and_read_stores(world, team), "live"):
        found["check_stores"] = wrong
    return found


async def freeze_at(step: str, worker: Worker, driver: Driver) -> None:
    """Start a worker that freezes at `step`, and give it orders until it does."""
    await start_armed(worker, step, signal.SIGSTOP)
    deadline = time.monotonic() + DEADLINE_S
    while not worker.froze():
        assert time.monotonic() < deadline, f"it did not freeze {step}\n{worker.log_tail()}"
        await driver.begin(ORDERS_AT_ONCE)
        await asyncio.sleep(0.1)


async def kill_at_every_step(
    steps: Sequence[str],
    worker: Worker,
    bootstrap: str | None,
    processed: Callable[[list[Order]], Awaitable[World]],
) -> None:
    """Kill the worker at one step after the other, each time with new orders, and verify everything each time.

    `processed` waits until the running worker is through, stops it and reads the topics.
    """
    orders: list[Order] = []
    for number, step in enumerate(steps, start=1):
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


async def start_armed(worker: Worker, step: str, sent: signal.Signals) -> None:
    """Start a worker that sends itself a signal at `step` of a commit from now on."""
    armed = worker.folder / f"armed {step}"
    environment = {
        "KILL_STEP": step,
        "KILL_SIGNAL": sent.name,
        "KILL_COMMIT": str(KILL_COMMIT),
        "KILL_WHEN": str(armed),
    }
    worker.start(KILLED_WORKER, environment)
    await worker.ready()
    armed.touch()


async def kill_at(step: str, worker: Worker, driver: Driver) -> None:
    """Start a worker that kills itself at `step`, and give it orders until it does."""
    await start_armed(worker, step, signal.SIGKILL)
    end = asyncio.create_task(asyncio.to_thread(worker.wait, DEADLINE_S))
    while not end.done():
        await driver.begin(ORDERS_AT_ONCE)
        await asyncio.wait([end], timeout=0.1)
    assert end.result() == -signal.SIGKILL, worker.log_tail()
