"""LoopShare: while there are requests, all that handle records in one turn of the loop hold it for a short time."""

import asyncio
import time

import pytest

from engine.work.loop_share import ATTENTION_S, LEAST_S, RECORDS_MAX, SLICE_S, TURN_S, LoopShare


@pytest.fixture
def share() -> LoopShare:
    share = LoopShare()
    share.somebody_asks()
    return share


async def test_the_first_of_a_turn_has_all_of_it(share: LoopShare) -> None:
    assert share.next_s() == TURN_S


async def test_while_nobody_asks_everybody_has_a_slice_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    share = LoopShare()
    share.used(TURN_S)
    assert share.next_s() == SLICE_S
    share.somebody_asks()
    assert share.next_s() == LEAST_S
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + ATTENTION_S + 0.1)
    assert share.next_s() == SLICE_S


async def test_units_of_work_are_small_while_somebody_asks_and_commits_hold_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    embedded, kafka = LoopShare(commits_in_loop=True), LoopShare(commits_in_loop=False)
    assert embedded.records_max(20_000) == 20_000
    embedded.somebody_asks()
    kafka.somebody_asks()
    assert embedded.records_max(20_000) == RECORDS_MAX
    assert embedded.records_max(10) == 10
    assert kafka.records_max(20_000) == 20_000
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + ATTENTION_S + 0.1)
    assert embedded.records_max(20_000) == 20_000


async def test_later_ones_share_what_is_left_and_everybody_gets_something(share: LoopShare) -> None:
    share.used(TURN_S / 2)
    assert share.next_s() == pytest.approx(TURN_S / 2)
    share.used(TURN_S / 2)
    assert share.next_s() == LEAST_S
    share.used(1.0)
    assert share.next_s() == LEAST_S


async def test_the_next_turn_begins_anew_however_often_the_last_one_was_used(share: LoopShare) -> None:
    for _ in range(3):
        share.used(TURN_S)
        share.used(TURN_S)
        await asyncio.sleep(0)
        assert share.next_s() == TURN_S


async def test_many_ready_tasks_hold_a_turn_for_little_longer_than_one(share: LoopShare) -> None:
    turns, goes_on = list[float](), True

    async def handle() -> None:
        while goes_on:
            turns[-1] += (seconds := share.next_s())
            share.used(seconds)
            await asyncio.sleep(0)

    async def count_turns() -> None:
        for _ in range(20):
            turns.append(0.0)
            await asyncio.sleep(0)

    counting = asyncio.create_task(count_turns())
    handling = [asyncio.create_task(handle()) for _ in range(40)]
    await counting
    goes_on = False
    await asyncio.gather(*handling)
    assert max(turns[:-1]) <= TURN_S + 40 * LEAST_S  # nobody counted where the last one ended
