"""Loop share: how long those who handle records in one turn of the event loop may hold it together."""

import asyncio
import time

SLICE_S = 0.005  # of each of them while nobody asks the web view: heartbeats come through between any two
TURN_S = 0.003
LEAST_S = 0.0002  # below it the way in and out of a slice costs more than it is worth
ATTENTION_S = 1.0  # so long after a request others are expected


class LoopShare:
    """Divides the turns of the event loop among the agents and partitions that handle records in them.

    A request needs several turns from its connection to its answer. While there are requests, all that handle records
    share a turn: the first gets what there is of TURN_S, later ones what is left of it and at least LEAST_S, so that
    everybody goes on. With a slice for every agent and partition, a busy worker answered in tenths of seconds. Short
    slices cost a tenth of the throughput, so there are long ones while nobody asks.
    """

    def __init__(self) -> None:
        self._used_s = 0.0
        self._attentive_until = 0.0

    def next_s(self) -> float:
        """Seconds for whoever handles records now."""
        if time.monotonic() > self._attentive_until:
            return SLICE_S
        return max(TURN_S - self._used_s, LEAST_S)

    def used(self, seconds: float) -> None:
        """So much of this turn is gone."""
        if not self._used_s:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._used_s += seconds

    def somebody_asks(self) -> None:
        """There is a request."""
        self._attentive_until = time.monotonic() + ATTENTION_S

    def _next_turn(self) -> None:
        self._used_s = 0.0
