"""Whole chaos runs, shared by the tests and the long run: load, faults, an end to both, and a verdict."""

from __future__ import annotations

import asyncio
import shutil
import statistics
import time
import traceback
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from tests.chaos.audits import audit_problems
from tests.chaos.driver import Driver
from tests.chaos.faults import (
    BROKER,
    BROKER_STOP,
    FREEZE,
    INTRUDER,
    KILL,
    KILL_ALL,
    KILL_AND_WIPE,
    PAUSE_S,
    REFUSE,
    ROLLING,
    SKEW,
    TRUNCATE,
    WORKER,
    Fault,
    Faults,
    Worker,
)
from tests.chaos.log_faults import LogFaults
from tests.chaos.orders import Order
from tests.chaos.verifier import check_positions, check_stores, count_broken, find_problems
from tests.chaos.verify_balance import id_in, problems_at_any_moment
from tests.chaos.world import EmbeddedSource, KafkaSource, Rows, Source, World, store_rows
from tests.kafka import KafkaBroker

SETTLE_TIMEOUT_S = 60.0
MARKERS_TIMEOUT_S = 5.0
PROBLEMS_SHOWN = 10

# As short as the broker allows, so that a freeze of seconds outlives the session.
SETTINGS = {"ORDERS_SESSION_TIMEOUT": "2"}

Urls = Callable[[], Sequence[str]]


class Workload(Protocol):
    """What is asked of the workers, and how what came of it is judged."""

    releases: Sequence[Sequence[str]]
    """How workers are started: with the first of these, and after each rolling restart with the next one."""
    sound: Sequence[str]
    """How a worker is started that has all tables, and no bugs."""

    def settings(self, number: int) -> dict[str, str]:
        """Settings of the first, second... worker."""

    def around(self, urls: Urls) -> AbstractAsyncContextManager[object]:
        """What has to run as long as workers do."""

    def driver(self, seed: int, urls: Urls, bootstrap: str | None, http_share: float, orders_per_s: float) -> Driver:
        """The clients."""

    def faults_are_over(self) -> None:
        """There are no more faults from now on, and no new orders."""

    def is_settled(self, world: World) -> bool:
        """Whether nothing more will happen."""

    def judge_moment(self, world: World) -> dict[str, list[str]]:
        """Problems by check while all workers are killed, in the middle of everything."""

    async def look(self, world: World, urls: Urls) -> None:
        """Ask the running workers for what is to be compared with the topics."""

    def judge(self, world: World) -> tuple[dict[str, list[str]], tuple[int, int], dict[str, float]]:
        """Problems by check, how many effects are lost and how many were repeated, and figures."""


class Commands:
    """Orders without sagas: clients place, confirm and cancel."""

    releases: Sequence[Sequence[str]] = (WORKER,)
    sound: Sequence[str] = WORKER

    def settings(self, number: int) -> dict[str, str]:
        """See Workload."""
        return {"ORDERS_SAGA": "none"}

    def around(self, urls: Urls) -> AbstractAsyncContextManager[object]:
        """See Workload."""
        return nullcontext()

    def driver(self, seed: int, urls: Urls, bootstrap: str | None, http_share: float, orders_per_s: float) -> Driver:
        """See Workload."""
        return Driver(seed, urls, bootstrap, http_share, orders_per_s)

    def faults_are_over(self) -> None:
        """Clients see through what they have begun."""

    def is_settled(self, world: World) -> bool:
        """See Workload."""
        return is_processed(world)

    def judge_moment(self, world: World) -> dict[str, list[str]]:
        """See Workload."""
        return problems_at_any_moment(world)

    async def look(self, world: World, urls: Urls) -> None:
        """Nothing: the tables say it all."""

    def judge(self, world: World) -> tuple[dict[str, list[str]], tuple[int, int], dict[str, float]]:
        """See Workload."""
        return find_problems(world), count_broken(world), {}


COMMANDS_ALONE: Final[Workload] = Commands()


@dataclass
class Report:
    """The verdict of a run, with all it takes to look into it."""

    seed: int
    workers: list[Worker]
    faults: Sequence[Fault] = ()
    problems: dict[str, list[str]] = field(default_factory=dict)
    figures: dict[str, float] = field(default_factory=dict)

    def note(self, name: str, problems: Sequence[str]) -> None:
        """Add what a check found."""
        if problems:
            self.problems.setdefault(name, []).extend(problems)

    def text(self) -> str:
        """Everything, for the message of a failed test."""
        lines = [f"seed {self.seed}", f"figures {self.figures}", "faults:", *(f"  {fault}" for fault in self.faults)]
        for name, found in self.problems.items():
            lines.append(f"{name}: {len(found)} problems")
            lines += [f"  {problem[:3000]}" for problem in found[:PROBLEMS_SHOWN]]
        for worker in self.workers:
            lines += [f"last lines of {worker.log_path}:", worker.log_tail()]
        return "\n".join(lines)


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

    def urls() -> Sequence[str]:
        return [worker.url for worker in team]

    mistakes = LogFaults(broker.bootstrap, urls)
    faults.others = mistakes.by_kind(folder / "intruder", SETTINGS | workload.settings(1))
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
            _judge(world, workload, driver, faults, report)
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
            world = await World.read(EmbeddedSource(worker.data_dir), driver.orders)
            report.note("check_stores", check_stores(world, stores_of(worker, world.partitions(), world), "live"))
            _judge(world, workload, driver, faults, report)
            fresh = Worker("fresh", folder / "fresh", "embedded://", SETTINGS | workload.settings(1), workload.sound)
            report.workers.append(fresh)
            shutil.copytree(worker.data_dir / "log", fresh.data_dir / "log")
            report.note("check_stores", await _restored(world, fresh))
    except Exception as error:
        report.note("the run", ["".join(traceback.format_exception(error))])
    finally:
        worker.kill()
    return report


def is_processed(world: World) -> bool:
    """Whether the agents have passed everything."""
    return not check_positions(world)


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


def _judge(world: World, workload: Workload, driver: Driver, faults: Faults, report: Report) -> None:
    found, (lost, duplicated), figures = workload.judge(world)
    for name, problems in found.items():
        report.note(name, problems)
    for fault in faults.done:
        fault.recovery_s = _recovery_s(world, fault.began_at)
    recoveries = [fault.recovery_s for fault in faults.done if fault.recovery_s is not None]
    report.figures |= {
        "orders": len(driver.orders),
        "commands": len(world.records("order-commands")),
        "client_retries": driver.retries,
        "kills": faults.count(KILL, KILL_AND_WIPE, KILL_ALL),
        "freezes": faults.count(FREEZE),
        "broker_restarts": faults.count(BROKER),
        "broker_stops": faults.count(BROKER_STOP),
        "rolling_restarts": faults.count(ROLLING),
        "mistakes_in_the_log": faults.count(TRUNCATE, REFUSE, INTRUDER),
        "clock_jumps": sum(fault.kind.startswith(SKEW) for fault in faults.done),
        "lost": lost,
        "duplicated": duplicated,
        "keys_with_gaps": sum("gap" in problem for problem in found.get("check_versions", [])),
        "recovery_s_max": round(max(recoveries, default=0.0), 2),
        "recovery_s_median": round(statistics.median(recoveries or [0.0]), 2),
        **_rolling_figures(faults, driver),
        **figures,
    }


def _rolling_figures(faults: Faults, driver: Driver) -> dict[str, float]:
    """How long workers took to end, and how long orders took to be seen that were placed or seen meanwhile."""
    if not faults.sigterm_s:
        return {}
    figures = {"sigterm_s_max": round(max(faults.sigterm_s), 2)}
    restarts = [(fault.began_at, fault.ended_at) for fault in faults.done if fault.kind == ROLLING]
    seconds = [
        seen.seconds
        for seen in driver.sightings
        if any(seen.began_at <= end and begin <= seen.began_at + seen.seconds for begin, end in restarts)
    ]
    if len(seconds) > 1:
        cuts = statistics.quantiles(seconds, n=100, method="inclusive")
        figures |= {
            "rolling_s_max": round(max(end - begin for begin, end in restarts), 1),
            "orders_seen_while_rolling": len(seconds),
            "placed_to_visible_s_p50": round(cuts[49], 3),
            "placed_to_visible_s_p99": round(cuts[98], 3),
            "placed_to_visible_s_max": round(max(seconds), 3),
        }
    return figures


def _recovery_s(world: World, began_at: float) -> float | None:
    """Seconds from a moment until the first command after it had taken effect, in the slowest partition.

    Orders with dead letters do not count: they waited for people.
    """
    held_up = {record.key for record in world.records("dead-letters")}
    effects = {record.body["metadata"]["causationId"]: record.timestamp_ms for record in world.records("order-events")}
    recovered_ms: dict[int, int] = {}
    for record in world.records("order-commands"):
        if record.key in held_up or record.partition in recovered_ms:
            continue
        if record.timestamp_ms >= began_at * 1000:
            # A repeated command took effect earlier.
            recovered_ms[record.partition] = max(effects.get(id_in(record), 0), record.timestamp_ms)
    return max(recovered_ms.values()) / 1000 - began_at if recovered_ms else None


async def _compare_stores(world: World, team: Sequence[Worker], fresh: Worker) -> list[str]:
    """Live stores, stores restored into an empty folder and changelogs must be the same, byte for byte."""
    live = await stop_and_read_stores(world, team)
    return check_stores(world, live, "live") + await _restored(world, fresh)


async def stop_and_read_stores(world: World, team: Sequence[Worker]) -> dict[int, dict[str, Rows]]:
    """Stop all workers; the store of every partition at the one who owned it."""
    owned = await _owned(world, team)
    for worker in team:
        await asyncio.to_thread(worker.stop)
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
    """Wait until every partition has one owner in the team, and is restored there; which worker owns which."""
    deadline = time.monotonic() + SETTLE_TIMEOUT_S
    while True:
        owned = [await worker.ready() for worker in team]
        if sorted(number for numbers in owned for number in numbers) == world.partitions():
            return owned
        if time.monotonic() > deadline:
            raise TimeoutError(f"after {SETTLE_TIMEOUT_S:.0f} s without faults the workers own {owned}")
        await asyncio.sleep(0.2)


def stores_of(worker: Worker, numbers: Iterable[int], world: World) -> dict[int, dict[str, Rows]]:
    """The stores of these partitions in the folder of a worker that is stopped."""
    return {number: store_rows(worker.data_dir, number, world.tables()) for number in numbers}
