"""Waiters: requests that wait until an agent has committed past an offset, and what they need does not wait itself."""

import asyncio
from collections import defaultdict
from collections.abc import Callable
from typing import NamedTuple

WAITERS_MAX = 10_000


class TooManyWaiters(Exception):
    """So many requests wait at this worker already that another one would not be served; try again later."""


class PartitionLost(Exception):
    """The partition left this worker while a request waited; ask again, another worker has it or will."""


class Wanted(NamedTuple):
    """What a request waits for: that an agent has passed `offset`.

    A position also passes records that have to wait in a lane (see lanes.py). With `is_exact` the very record before
    `offset` must not be one of them; with `key` nothing of that key may be. `mark` is that of the topic which the
    offset counts (see engine.positions.tokens), None where it is not known.
    """

    offset: int
    is_exact: bool = False
    key: bytes | None = None
    mark: int | None = None


class WaitingRoom:
    """Counts what waits in all partitions of a worker."""

    def __init__(self) -> None:
        self.count = 0


class PositionWaiters:
    """Wakes requests on commit; nothing polls. One heap is not needed: few agents, few distinct offsets at a time."""

    def __init__(self, has_done: Callable[[str, str, Wanted], bool], room: WaitingRoom | None = None) -> None:
        self._has_done = has_done
        self._room = room or WaitingRoom()
        self._waiting: defaultdict[tuple[str, str], list[tuple[Wanted, asyncio.Future[None]]]] = defaultdict(list)
        self.on_wait: Callable[[str, str], None] = lambda agent, topic: None

    async def wait(
        self,
        agent: str,
        topic: str,
        offset: int,
        timeout_s: float,
        *,
        is_exact: bool = False,
        key: bytes | None = None,
    ) -> bool:
        """Return True once `agent` has committed what is wanted (see Wanted), False after `timeout_s` seconds.

        Raises PartitionLost when the partition goes away meanwhile, TooManyWaiters at the limit.
        """
        wanted = Wanted(offset, is_exact, key)
        if self._has_done(agent, topic, wanted):
            return True
        if timeout_s <= 0:
            return False
        if self._room.count >= WAITERS_MAX:
            raise TooManyWaiters(f"{WAITERS_MAX} requests wait already")
        future = asyncio.get_running_loop().create_future()
        entry = wanted, future
        waiting = self._waiting[agent, topic]
        waiting.append(entry)
        self._room.count += 1
        self.on_wait(agent, topic)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            self._room.count -= 1
            if entry in waiting:
                waiting.remove(entry)
        return True

    def waits_for(self, agent: str, topic: str) -> bool:
        """Whether somebody waits for this agent."""
        return bool(self._waiting.get((agent, topic)))

    def notify(self) -> None:
        """Wake every request whose offset is reached."""
        for (agent, topic), waiting in self._waiting.items():
            if not waiting:
                continue
            for entry in [entry for entry in waiting if self._has_done(agent, topic, entry[0])]:
                waiting.remove(entry)
                if not entry[1].done():
                    entry[1].set_result(None)

    def close(self) -> None:
        """Tell every waiting request that the partition is gone."""
        for waiting in self._waiting.values():
            for _, future in waiting:
                if not future.done():
                    future.set_exception(PartitionLost("the partition moved to another worker"))
            waiting.clear()
