"""Loop share: how long those who handle records in one turn of the event loop may hold it together."""

import asyncio

TURN_S = 0.004
LEAST_S = 0.00025  # below it the way in and out of a slice costs more than it is worth


class LoopShare:
    """Divides each turn of the event loop among the agents and partitions that handle records in it.

    The first gets what there is of TURN_S, later ones what is left of it and at least LEAST_S, so that everybody goes
    on. A request needs several turns from its connection to its answer: with a share of its own for every agent and
    partition, a busy worker answered in tenths of seconds.
    """

    def __init__(self) -> None:
        self._used_s = 0.0

    def next_s(self) -> float:
        """Seconds for whoever handles records now."""
        return max(TURN_S - self._used_s, LEAST_S)

    def used(self, seconds: float) -> None:
        """So much of this turn is gone."""
        if not self._used_s:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._used_s += seconds

    def _next_turn(self) -> None:
        self._used_s = 0.0
