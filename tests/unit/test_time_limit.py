"""A call to the outside has its time, which does not run while it waits for a connection."""

from __future__ import annotations

import asyncio

import pytest

from engine.calls.time_limit import slot, within
from engine.declare.errors import Unavailable

SHORT_S = 0.01
LONG_S = 60.0


async def answer(event: asyncio.Event, slots: asyncio.Semaphore | None = None) -> str:
    """Answer when the event says so."""
    if slots is None:
        await event.wait()
    else:
        async with slot(slots):
            await event.wait()
    return "answer"


async def test_a_call_that_is_answered_in_time_returns_the_answer() -> None:
    now = asyncio.Event()
    now.set()
    assert await within(LONG_S, answer(now)) == "answer"


async def test_a_call_that_never_returns_is_unavailable() -> None:
    with pytest.raises(Unavailable, match=r"^a call did not answer within 0\.01 s$"):
        await within(SHORT_S, answer(asyncio.Event()))


async def test_a_timeout_of_the_calls_own_is_left_as_it_is() -> None:
    async def fail() -> None:
        raise TimeoutError("its own")

    with pytest.raises(TimeoutError, match="its own"):
        await within(LONG_S, fail())


async def test_a_call_that_waits_for_a_connection_is_not_cut_off_and_has_all_its_time_then() -> None:
    slots, now, never = asyncio.Semaphore(1), asyncio.Event(), asyncio.Event()
    async with slots:
        calls = [asyncio.create_task(within(SHORT_S, answer(now, slots))) for _ in range(2)]
        await asyncio.sleep(3 * SHORT_S)
        assert not any(call.done() for call in calls)
        now.set()
    assert await asyncio.gather(*calls) == ["answer"] * 2
    with pytest.raises(Unavailable):
        await within(SHORT_S, answer(never, slots))
    assert not slots.locked()


async def test_without_a_limit_a_slot_is_just_a_slot() -> None:
    slots, now = asyncio.Semaphore(1), asyncio.Event()
    now.set()
    assert await answer(now, slots) == "answer"
