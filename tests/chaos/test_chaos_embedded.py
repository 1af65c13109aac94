"""Kill -9 on the embedded log at random moments: nothing is lost, nothing is done twice."""

from pathlib import Path

import pytest

from tests.chaos.faults import shuffled
from tests.chaos.scenario import run_on_embedded_log

SEED = 20261123


@pytest.mark.chaos
@pytest.mark.slow
async def test_every_accepted_order_is_placed_exactly_once_on_the_embedded_log_whatever_is_killed(
    tmp_path: Path,
) -> None:
    print(f"seed {SEED}")
    report = await run_on_embedded_log(SEED, shuffled(SEED, kills=10), tmp_path, orders_per_s=60)
    print(report.figures)
    assert not report.problems, report.text()
    assert report.figures["kills"] == 10
