"""Kill -9 on the embedded log at random moments: nothing is lost, nothing is done twice."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.chaos.faults import shuffled
from tests.chaos.sagas import Sagas
from tests.chaos.scenario import run_on_embedded_log

SEED = 20261123
KILLS = 5

pytestmark = [pytest.mark.chaos, pytest.mark.slow]


async def test_every_accepted_order_is_placed_exactly_once_on_the_embedded_log_whatever_is_killed(
    tmp_path: Path,
) -> None:
    print(f"seed {SEED}")
    report = await run_on_embedded_log(SEED, shuffled(SEED, kills=10), tmp_path, orders_per_s=60)
    print(report.figures)
    assert not report.problems, report.text()
    assert report.figures["kills"] == 10


@pytest.mark.parametrize(
    "workload",
    [
        pytest.param(lambda: Sagas("orchestration"), id="orchestrated"),
        # Payments are away for longer than a saga waits, too.
        pytest.param(
            lambda: Sagas("choreography", over_http=True, ORDERS_SAGA_STEP_TIMEOUT="1"), id="choreographed-over-http"
        ),
    ],
)
async def test_stock_money_and_orders_agree_on_the_embedded_log_whatever_is_killed(
    workload: Callable[[], Sagas], tmp_path: Path
) -> None:
    print(f"seed {SEED}")
    report = await run_on_embedded_log(
        SEED, shuffled(SEED, kills=KILLS), tmp_path, orders_per_s=40, workload=workload(), pause_s=(0.5, 3.0)
    )
    print(report.figures)
    assert not report.problems, report.text()
    assert report.figures["kills"] == KILLS
    assert report.figures["confirmed"] > 0
    assert report.figures["cancelled"] > 0
