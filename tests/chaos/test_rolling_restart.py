"""Rolling restarts under load, old and new release mixed: nothing is lost or doubled, and workers end when told to."""

from pathlib import Path

import pytest

from tests.chaos.faults import STOP_TIMEOUT_S, shuffled
from tests.chaos.rolling import Rolling
from tests.chaos.sagas import Sagas
from tests.chaos.scenario import run_on_kafka
from tests.kafka import KafkaBroker

SEED = 20261125
PATIENCE_S = 30.0  # of a customer: far beyond what anything here takes

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


async def test_a_rolling_restart_to_the_next_release_loses_and_doubles_nothing(
    private_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    report = await run_on_kafka(
        SEED,
        shuffled(SEED, rolling_restarts=1),
        tmp_path,
        private_kafka_broker,
        workers=3,
        orders_per_s=30,
        workload=Rolling(Sagas("mixed")),
        pause_s=(1.0, 2.0),
    )
    print(report.figures)
    assert not report.problems, report.text()
    figures = report.figures
    assert figures["rolling_restarts"] == 1
    assert figures["sigterm_s_max"] < STOP_TIMEOUT_S
    assert min(figures["lines_of_version_1"], figures["lines_of_version_2"]) > 0, "both releases wrote lines"
    assert figures["orders_seen_while_rolling"] > 0
    assert figures["placed_to_visible_s_max"] < PATIENCE_S
