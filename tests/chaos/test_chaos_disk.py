"""A short run of damage to the files of a store; the long one is `make chaos`."""

from __future__ import annotations

from pathlib import Path

from tests.chaos import disk

ROUNDS = 20


async def test_damage_to_any_file_of_a_store_is_never_a_wrong_answer_and_mends_itself(tmp_path: Path) -> None:
    done = await disk.run(ROUNDS, 16, tmp_path)
    assert sum(done.values()) - done["rebuilt"] == ROUNDS
    assert done["rebuilt"] > 0
