"""The verdict of a chaos run: problems by check, and figures."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.chaos.driver import Driver
from tests.chaos.faults import (
    BROKER,
    BROKER_STOP,
    FREEZE,
    INTRUDER,
    KILL,
    KILL_ALL,
    KILL_AND_WIPE,
    RECREATE,
    REFUSE,
    REMOVE,
    ROLLING,
    SKEW,
    TRUNCATE,
    Fault,
    Faults,
    Worker,
)
from tests.chaos.verify_balance import id_in
from tests.chaos.workload import Workload
from tests.chaos.world import World

PROBLEMS_SHOWN = 10


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


def judge(world: World, workload: Workload, driver: Driver, faults: Faults, report: Report) -> None:
    """Note in `report` what the workload finds wrong, and the figures of the run."""
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
        "removals": faults.count(REMOVE),
        "recreations": faults.count(RECREATE),
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
