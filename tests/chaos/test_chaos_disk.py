"""Short runs of damage to files and of calls that fail; the long ones are `make chaos`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.apps import DURABLE_TRANSPORTS, KAFKA, broker_url
from tests.chaos import disk, disk_faults, disk_log

SEED = 16
ROUNDS = 20
ROUNDS_ON_KAFKA = 8


@pytest.fixture
def broker(request: pytest.FixtureRequest) -> str:
    """ORDERS_BROKER of what the test is parametrized with."""
    return broker_url(request)


def rounds_on(broker: str) -> int:
    """How many rounds there are time for."""
    return ROUNDS_ON_KAFKA if broker.startswith("kafka") else ROUNDS


@pytest.mark.parametrize("broker", ["memory", KAFKA], indirect=True)
async def test_damage_to_any_file_of_a_store_is_never_a_wrong_answer_and_mends_itself(
    tmp_path: Path, broker: str
) -> None:
    done = await disk.run(broker, rounds_on(broker), SEED, tmp_path)
    assert sum(done.values()) - done["rebuilt"] == rounds_on(broker)
    assert done["rebuilt"] > 0


async def test_damage_to_an_embedded_log_is_never_a_wrong_answer_and_what_is_missing_is_said(tmp_path: Path) -> None:
    done = await disk_log.run(ROUNDS, SEED, tmp_path)
    assert done["refused to start"] > 0
    assert done["healed by itself"] > 0
    assert done["nothing was missing"] > 0


@pytest.mark.parametrize("broker", DURABLE_TRANSPORTS, indirect=True)
async def test_calls_that_fail_at_any_step_are_never_a_wrong_answer_and_all_goes_on_after_them(
    tmp_path: Path, broker: str, faulty_disk_library: Path
) -> None:
    done = await asyncio.to_thread(disk_faults.run, broker, rounds_on(broker), SEED, tmp_path, faulty_disk_library)
    assert done["rounds in which calls failed"] >= rounds_on(broker) / 4
