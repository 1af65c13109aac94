"""Records removed ahead of readers and topics made anew: what is lost is named, and everything else is there, once."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import RECREATE, REMOVE
from tests.chaos.report import Report
from tests.chaos.scenario import run_on_embedded_log, run_on_kafka
from tests.kafka import KafkaBroker

SEED = 20261130

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


def check(report: Report) -> None:
    print(report.figures)
    assert not report.problems, report.text()
    assert (report.figures["removals"], report.figures["recreations"]) == (1, 1)
    assert report.figures["records_named"] > 0


async def test_all_that_is_lost_of_kafka_is_named_and_the_rest_is_done_once(
    private_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    check(
        await run_on_kafka(
            SEED, (REMOVE, RECREATE), tmp_path, private_kafka_broker, workers=2, orders_per_s=40, pause_s=(0.0, 0.5)
        )
    )


async def test_all_that_is_lost_of_the_embedded_log_is_named_and_the_rest_is_done_once(tmp_path: Path) -> None:
    check(await run_on_embedded_log(SEED, (REMOVE, RECREATE), tmp_path, orders_per_s=40, pause_s=(0.0, 0.5)))
