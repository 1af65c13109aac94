"""Handlers fail at random while workers are killed and frozen: at every moment each record is in exactly one place."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.failures import Failing, FailingCommands, FailingSagas
from tests.chaos.faults import KILL_ALL, shuffled
from tests.chaos.report import Report
from tests.chaos.sagas import Sagas
from tests.chaos.scenario import run_on_embedded_log, run_on_kafka
from tests.kafka import KafkaBroker

SEED = 20261123
PAUSE_S = (1.0, 4.0)

pytestmark = [pytest.mark.chaos, pytest.mark.slow]

WORKLOADS = pytest.mark.parametrize(
    "workload",
    [
        pytest.param(FailingCommands, id="commands"),
        pytest.param(lambda folder: FailingSagas(Sagas("orchestration", over_http=True), folder), id="sagas"),
    ],
)


@WORKLOADS
async def test_input_is_applied_waiting_dead_or_discarded_at_every_moment_on_the_embedded_log(
    workload: Callable[[Path], Failing], tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    report = await run_on_embedded_log(
        SEED, [KILL_ALL] * 6, tmp_path, orders_per_s=40, workload=workload(tmp_path), pause_s=PAUSE_S
    )
    check(report, moments=6)


@WORKLOADS
async def test_input_is_applied_waiting_dead_or_discarded_at_every_moment_on_kafka(
    workload: Callable[[Path], Failing], private_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    report = await run_on_kafka(
        SEED,
        shuffled(SEED, kills=2, kills_of_all=4, freezes=1),
        tmp_path,
        private_kafka_broker,
        workers=2,
        orders_per_s=40,
        workload=workload(tmp_path),
        pause_s=PAUSE_S,
    )
    check(report, moments=4)
    assert (report.figures["kills"], report.figures["freezes"]) == (6, 1)


def check(report: Report, moments: int) -> None:
    """The verdict, and that there was something to judge."""
    print(report.figures)
    assert not report.problems, report.text()
    assert report.figures["moments"] == moments
    assert (report.figures["lost"], report.figures["duplicated"]) == (0, 0)
    for what in ("resolved", "moved", "discarded", "waiting_at_moments", "open_at_moments"):
        assert report.figures[what] > 0, what
