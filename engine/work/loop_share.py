"""Loop share: how long those who handle records in one turn of the event loop may hold it together."""

import asyncio
import time

SLICE_S = 0.005  # of each of them while nobody asks the web view: heartbeats come through between any two
TURN_S = 0.003
LEAST_S = 0.0002  # below it the way in and out of a slice costs more than it is worth
ATTENTION_S = 1.0  # so long after a request others are expected
RECORDS_MAX = 150  # of a unit of work: its commit takes some 50 µs for each, with all that has come of it


class LoopShare:
    """Divides the turns of the event loop among the agents and partitions that handle records in them.

    A request needs several turns from its connection to its answer. While there are requests, all that handle records
    share a turn: the first gets what there is of TURN_S, later ones what is left of it and at least LEAST_S, so that
    everybody goes on. With a slice for every agent and partition, a busy worker answered in tenths of seconds. Short
    slices cost a tenth of the throughput, so there are long ones while nobody asks.

    A commit on a log that is written in the loop, too, cannot be divided: there units of work stay small meanwhile.
    """

    def __init__(self, commits_in_loop: bool = False) -> None:
        self._commits_in_loop = commits_in_loop
        self._used_s = 0.0
        self._attentive_until = 0.0

    def next_s(self) -> float:
        """Seconds for whoever handles records now."""
        return max(TURN_S - self._used_s, LEAST_S) if self._is_asked() else SLICE_S

    def records_max(self, most: int) -> int:
        """How many records a unit of work may have now: at most as many as are allowed at any time."""
        return min(most, RECORDS_MAX) if self._commits_in_loop and self._is_asked() else most

    def used(self, seconds: float) -> None:
        """So much of this turn is gone."""
        if not self._used_s:
            asyncio.get_running_loop().call_soon(self._next_turn)
        self._used_s += seconds

    def somebody_asks(self) -> None:
        """There is a request."""
        self._attentive_until = time.monotonic() + ATTENTION_S

    def _is_asked(self) -> bool:
        return time.monotonic() <= self._attentive_until

    def _next_turn(self) -> None:
        self._used_s = 0.0
