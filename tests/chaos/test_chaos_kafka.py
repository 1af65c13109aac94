"""Kill -9, freezes and a broker restart on real Kafka at random moments: nothing is lost, nothing is done twice."""

from pathlib import Path

import pytest

from tests.chaos.faults import shuffled
from tests.chaos.sagas import Sagas
from tests.chaos.scenario import run_on_kafka
from tests.kafka import KafkaBroker

SEED = 20261123

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


async def test_every_accepted_order_is_placed_exactly_once_on_kafka_whatever_is_killed_or_frozen(
    private_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    schedule = shuffled(SEED, kills=4, wipes=2, freezes=2, broker_restarts=1)
    report = await run_on_kafka(SEED, schedule, tmp_path, private_kafka_broker, workers=2, orders_per_s=60)
    print(report.figures)
    assert not report.problems, report.text()
    assert (report.figures["kills"], report.figures["freezes"], report.figures["broker_restarts"]) == (6, 2, 1)


async def test_stock_money_and_orders_agree_on_kafka_whatever_is_killed_or_frozen(
    private_kafka_broker: KafkaBroker, tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    report = await run_on_kafka(
        SEED,
        shuffled(SEED, kills=3, wipes=1, freezes=2, broker_restarts=1),
        tmp_path,
        private_kafka_broker,
        workers=2,
        orders_per_s=40,
        workload=Sagas("orchestration", over_http=True),
        pause_s=(0.5, 3.0),
    )
    print(report.figures)
    assert not report.problems, report.text()
    assert (report.figures["kills"], report.figures["freezes"], report.figures["broker_restarts"]) == (4, 2, 1)
    assert report.figures["confirmed"] > 0
    assert report.figures["cancelled"] > 0
