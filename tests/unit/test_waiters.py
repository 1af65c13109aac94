"""Requests wait for an agent's position, are woken by commits, and never for ever."""

from __future__ import annotations

import asyncio

import pytest

from engine.work import waiters
from engine.work.waiters import PartitionLost, PositionWaiters, TooManyWaiters


class Positions:
    """Positions as commits move them."""

    def __init__(self) -> None:
        self.reached: dict[tuple[str, str], int] = {}
        self.waiters = PositionWaiters(
            lambda agent, topic, wanted: self.reached.get((agent, topic), 0) >= wanted.offset
        )

    def commit(self, agent: str, topic: str, offset: int) -> None:
        self.reached[agent, topic] = offset
        self.waiters.notify()


async def waiting(
    positions: Positions, agent: str, topic: str, offset: int, timeout_s: float = 20
) -> asyncio.Task[bool]:
    """Return a request that has begun to wait."""
    task = asyncio.create_task(positions.waiters.wait(agent, topic, offset, 20))
    await asyncio.sleep(0)
    return task


async def test_what_is_reached_is_not_waited_for() -> None:
    positions = Positions()
    positions.commit("a", "t", 5)
    assert await positions.waiters.wait("a", "t", 5, 0)
    assert not await positions.waiters.wait("a", "t", 6, 0)


async def test_a_commit_wakes_those_whose_offset_is_reached_and_nobody_else() -> None:
    positions = Positions()
    low, high = await waiting(positions, "a", "t", 3), await waiting(positions, "a", "t", 9)
    other_agent, other_topic = await waiting(positions, "b", "t", 3), await waiting(positions, "a", "u", 3)
    positions.commit("a", "t", 2)
    await asyncio.sleep(0)
    assert not low.done()
    positions.commit("a", "t", 5)
    assert await low
    assert not any(task.done() for task in (high, other_agent, other_topic))
    positions.commit("a", "t", 9)
    positions.commit("b", "t", 3)
    positions.commit("a", "u", 4)
    assert all(await asyncio.gather(high, other_agent, other_topic))


async def test_a_request_gives_up_after_its_time_and_leaves_nothing_behind() -> None:
    positions = Positions()
    assert not await positions.waiters.wait("a", "t", 1, 0.001)
    positions.commit("a", "t", 1)
    positions.waiters.close()


async def test_a_request_that_is_cancelled_leaves_nothing_behind() -> None:
    positions = Positions()
    task = await waiting(positions, "a", "t", 1)
    task.cancel()
    await asyncio.wait([task])
    positions.commit("a", "t", 1)
    assert task.cancelled()


async def test_all_are_told_when_the_partition_goes() -> None:
    positions = Positions()
    tasks = [await waiting(positions, "a", "t", offset) for offset in (1, 2)]
    positions.waiters.close()
    for task in tasks:
        with pytest.raises(PartitionLost):
            await task


async def test_there_is_room_for_so_many_and_again_when_they_are_gone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiters, "WAITERS_MAX", 2)
    positions = Positions()
    tasks = [await waiting(positions, "a", "t", 1) for _ in range(2)]
    with pytest.raises(TooManyWaiters):
        await positions.waiters.wait("a", "t", 1, 20)
    positions.commit("a", "t", 1)
    assert all(await asyncio.gather(*tasks))
    again = await waiting(positions, "a", "t", 2)
    positions.commit("a", "t", 2)
    assert await again
