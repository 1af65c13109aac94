"""Whole chaos runs, shared by the tests and the long run: load, faults, an end to both, and a verdict."""

from __future__ import annotations

import asyncio
import shutil
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Sequence
from pathlib import Path

from tests.chaos.audits import audit_problems
from tests.chaos.driver import Driver
from tests.chaos.faults import PAUSE_S, Faults, Worker
from tests.chaos.log_faults import LogFaults
from tests.chaos.loss_faults import LossesOnEmbeddedLog, LossesOnKafka
from tests.chaos.orders import Order
from tests.chaos.report import Report, judge
from tests.chaos.verifier import check_stores
from tests.chaos.workload import COMMANDS_ALONE, Workload, is_processed
from tests.chaos.world import EmbeddedSource, KafkaSource, Rows, Source, World, store_rows
from tests.kafka import KafkaBroker

SETTLE_TIMEOUT_S = 60.0
MARKERS_TIMEOUT_S = 5.0

# As short as the broker allows, so that a freeze of seconds outlives the session.
SETTINGS = {"ORDERS_SESSION_TIMEOUT": "2"}


async def run_on_kafka(
    seed: int,
    schedule: Iterable[str],
    folder: Path,
    broker: KafkaBroker,
    workers: int,
    orders_per_s: float,
    workload: Workload = COMMANDS_ALONE,
    pause_s: tuple[float, float] = PAUSE_S,
) -> Report:
    """Drive workers on a broker of their own through faults; then compare topics, tables, views and stores."""
    url = f"kafka://{broker.bootstrap}"
    team = [
        Worker(f"w{n}", folder / f"w{n}", url, SETTINGS | workload.settings(n), workload.releases[0])
        for n in range(1, workers + 1)
    ]
    faults = Faults(seed, team, broker, pause_s=pause_s, releases=workload.releases)
    report = Report(seed, list(team), faults.done)
    source, world = KafkaSource(broker.bootstrap), World(())

    async def read() -> World:
        await world.update(source)
        return world

    faults.look = lambda: _look_at_moment(read, workload, report)
    faults.is_worth_a_look = workload.is_worth_a_look

    def urls() -> Sequence[str]:
        return [worker.url for worker in team]

    mistakes = LogFaults(broker.bootstrap, urls)
    losses = LossesOnKafka(team, broker.bootstrap, world, source)
    faults.others = {
        **mistakes.by_kind(folder / "intruder", SETTINGS | workload.settings(1)),
        **losses.by_kind(),
    }
    try:
        async with workload.around(urls):
            for worker in team:
                worker.start()
            await asyncio.gather(*(worker.ready() for worker in team))
            driver = workload.driver(seed, urls, broker.bootstrap, 0.15, orders_per_s)
            async with driver:
                world.orders = driver.orders
                await _under_faults(driver, faults, schedule, workload, report)
            began = time.monotonic()
            await settle(world, source, team, workload.is_settled)
            report.figures["seconds_to_settle"] = round(time.monotonic() - began, 1)
            await _owned(world, team)
            await workload.look(world, urls)
            report.note("audit", await audit_problems(urls()[0]))
            await world.update(source)
            judge(world, workload, driver, faults, report)
            fresh = Worker("fresh", folder / "fresh", url, SETTINGS | workload.settings(1), workload.sound)
            report.workers.append(fresh)
            report.note("check_stores", await _compare_stores(world, team, fresh))
    except Exception as error:
        report.note("the run", ["".join(traceback.format_exception(error))])
    finally:
        await source.close()
        for worker in team:
            worker.kill()
    return report


async def run_on_embedded_log(
    seed: int,
    schedule: Iterable[str],
    folder: Path,
    orders_per_s: float,
    workload: Workload = COMMANDS_ALONE,
    pause_s: tuple[float, float] = PAUSE_S,
) -> Report:
    """Drive one worker on the embedded log through kills, everything over HTTP."""
    worker = Worker("w1", folder / "w1", "embedded://", SETTINGS | workload.settings(1), workload.releases[0])
    faults = Faults(seed, [worker], down_s=(0.0, 0.3), pause_s=pause_s, releases=workload.releases)
    report = Report(seed, [worker], faults.done)
    faults.look = lambda: _look_at_moment(lambda: World.read(EmbeddedSource(worker.data_dir), ()), workload, report)
    faults.is_worth_a_look = workload.is_worth_a_look

    losses = LossesOnEmbeddedLog(worker)
    faults.others = losses.by_kind()

    def urls() -> Sequence[str]:
        return [worker.url]

    try:
        async with workload.around(urls):
            worker.start()
            await worker.ready()
            driver = workload.driver(seed, urls, None, 1.0, orders_per_s)
            async with driver:
                await _under_faults(driver, faults, schedule, workload, report)
            world = await settled_embedded(worker, driver.orders, workload.is_settled)
            worker.start()
            await worker.ready()
            await workload.look(world, urls)
            report.note("audit", await audit_problems(urls()[0]))
            await asyncio.to_thread(worker.stop)
            world = await World.read(EmbeddedSource(worker.data_dir), driver.orders, losses=losses.losses)
            report.note("check_stores", check_stores(world, stores_of(worker, world.partitions(), world), "live"))
            judge(world, workload, driver, faults, report)
            fresh = Worker("fresh", folder / "fresh", "embedded://", SETTINGS | workload.settings(1), workload.sound)
            report.workers.append(fresh)
            shutil.copytree(worker.data_dir / "log", fresh.data_dir / "log")
            report.note("check_stores", await _restored(world, fresh))
    except Exception as error:
        report.note("the run", ["".join(traceback.format_exception(error))])
    finally:
        worker.kill()
    return report


async def settle(
    world: World, source: Source, team: Sequence[Worker], is_settled: Callable[[World], bool] = is_processed
) -> None:
    """Read on until nothing more will happen, or the time is over."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    await world.update(source)
    while not is_settled(world) and time.monotonic() < deadline:
        for worker in team:
            worker.check()
        await asyncio.sleep(0.2)
        await world.update(source)


async def settled_embedded(
    worker: Worker, orders: Sequence[Order], is_settled: Callable[[World], bool] = is_processed
) -> World:
    """Let a running worker process everything; it is stopped, because only then its log can be read."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        await worker.ready()
        await asyncio.sleep(0.5)
        await asyncio.to_thread(worker.stop)
        world = await World.read(EmbeddedSource(worker.data_dir), orders)
        if is_settled(world) or time.monotonic() > deadline:
            return world
        worker.start()


async def _look_at_moment(read: Callable[[], Awaitable[World]], workload: Workload, report: Report) -> None:
    """Judge what is in the topics while nothing runs.

    A commit on Kafka becomes visible in one partition after the other, also when its worker is dead by then.
    """
    deadline = time.monotonic() + MARKERS_TIMEOUT_S
    while True:
        found = await asyncio.to_thread(workload.judge_moment, await read())
        if not found or time.monotonic() > deadline:
            break
        await asyncio.sleep(0.2)
    looks = int(report.figures.get("moments", 0)) + 1
    report.figures["moments"] = looks
    for name, problems in found.items():
        report.note(f"{name} at moment {looks}", problems)


async def _under_faults(
    driver: Driver, faults: Faults, schedule: Iterable[str], workload: Workload, report: Report
) -> None:
    """Load as long as there are faults, and until the clients have been answered after that."""
    over = asyncio.Event()
    began = time.monotonic()
    load = asyncio.create_task(driver.run(over))
    disturbance = asyncio.create_task(faults.run(schedule))
    try:
        await asyncio.wait({load, disturbance}, return_when=asyncio.FIRST_COMPLETED)
        if disturbance.done():
            disturbance.result()
        over.set()
        workload.faults_are_over()
        await load
        await disturbance
    finally:
        load.cancel()
        disturbance.cancel()
        await asyncio.gather(load, disturbance, return_exceptions=True)
        report.figures["seconds_under_faults"] = round(time.monotonic() - began, 1)


async def _compare_stores(world: World, team: Sequence[Worker], fresh: Worker) -> list[str]:
    """Live stores, stores restored into an empty folder and changelogs must be the same, byte for byte."""
    live = await stop_and_read_stores(world, team)
    return check_stores(world, live, "live") + await _restored(world, fresh)


async def stop_and_read_stores(world: World, team: Sequence[Worker]) -> dict[int, dict[str, Rows]]:
    """Stop all workers; the store of every partition at the one who owned it."""
    owned = await _owned(world, team)
    # All at once: one that stops later would be given the partitions of those that stopped before.
    await asyncio.gather(*(asyncio.to_thread(worker.stop) for worker in team))
    stores: dict[int, dict[str, Rows]] = {}
    for worker, numbers in zip(team, owned, strict=True):
        stores |= stores_of(worker, numbers, world)
    return stores


async def _restored(world: World, fresh: Worker) -> list[str]:
    """Restore everything into the empty folder of a worker, and compare."""
    fresh.start()
    try:
        await _owned(world, [fresh])
        await asyncio.to_thread(fresh.stop)
    finally:
        fresh.kill()
    return check_stores(world, stores_of(fresh, world.partitions(), world), "restored")


async def _owned(world: World, team: Sequence[Worker]) -> list[list[int]]:
    """Wait until every partition has one owner in the team, and is restored there; which worker owns which.

    Workers are asked one after the other, so that one answer may be older than a move: two looks have to agree.
    """
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    before: list[list[int]] | None = None
    while True:
        owned = [await worker.ready() for worker in team]
        if sorted(number for numbers in owned for number in numbers) == world.partitions():
            if owned == before:
                return owned
            before = owned
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {SETTLE_TIMEOUT_S:.0f} s without faults the workers own {owned}")
        await asyncio.sleep(0.2)


def stores_of(worker: Worker, numbers: Iterable[int], world: World) -> dict[int, dict[str, Rows]]:
    """The stores of these partitions in the folder of a worker that is stopped."""
    return {number: store_rows(worker.data_dir, number, world.tables()) for number in numbers}
