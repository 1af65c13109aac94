"""Waiters: requests that wait until an agent has committed past an offset."""

import asyncio
from collections import defaultdict
from collections.abc import Callable

WAITERS_MAX = 10_000


class TooManyWaiters(Exception):
    """So many requests wait already that another one would not be served; try again later."""


class PartitionLost(Exception):
    """The partition left this worker while a request waited; ask again, another worker has it or will."""


class PositionWaiters:
    """Wakes requests on commit; nothing polls. One heap is not needed: few agents, few distinct offsets at a time."""

    def __init__(self, reached: Callable[[str, str], int]) -> None:
        self._reached = reached
        self._waiting: defaultdict[tuple[str, str], list[tuple[int, asyncio.Future[None]]]] = defaultdict(list)
        self._count = 0
        self.on_wait: Callable[[str, str], None] = lambda agent, topic: None

    async def wait(self, agent: str, topic: str, offset: int, timeout_s: float) -> bool:
        """Return True once `agent` has committed everything before `offset`, False after `timeout_s` seconds.

        Raises PartitionLost when the partition goes away meanwhile, TooManyWaiters at the limit.
        """
        if self._reached(agent, topic) >= offset:
            return True
        if timeout_s <= 0:
            return False
        if self._count >= WAITERS_MAX:
            raise TooManyWaiters(f"{WAITERS_MAX} requests wait already")
        future = asyncio.get_running_loop().create_future()
        entry = offset, future
        waiting = self._waiting[agent, topic]
        waiting.append(entry)
        self._count += 1
        self.on_wait(agent, topic)
        try:
            async with asyncio.timeout(timeout_s):
                await future
        except TimeoutError:
            return False
        finally:
            self._count -= 1
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
            reached = self._reached(agent, topic)
            for entry in [entry for entry in waiting if entry[0] <= reached]:
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
