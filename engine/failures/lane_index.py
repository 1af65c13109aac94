"""What a partition task keeps in memory of its lanes: which keys are held up, what is due, how full they are."""

from __future__ import annotations

import heapq
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator

from engine.failures.lanes import Lane, LaneKey


class LaneIndex:
    """Derived from the rows of LANES, and brought up to date after each change of one.

    `blocked` may name keys whose lane has ended a moment ago, and lacks those whose lane has begun in the open unit of
    work, by the retry of a dead letter that kept nothing waiting: whether there is a lane is decided by its row.
    `is_handled(agent, topic)` is false for agents that are no longer there: their lanes never end by themselves, and
    take no room from others.
    """

    def __init__(self, per_lane_max: int, total_max: int, is_handled: Callable[[str, str], bool]) -> None:
        self.blocked: defaultdict[str, set[bytes]] = defaultdict(set)  # by agent; the sets are never replaced
        self.total = 0  # records in all lanes that take room, those at their fronts included
        self.waiting: Counter[str] = Counter()  # by agent: records in lanes, without those that are dead letters
        self.parked = 0  # lanes that stand behind a dead letter
        self._per_lane_max = per_lane_max
        self._total_max = total_max
        self._is_handled = is_handled
        self._lanes: dict[LaneKey, Lane] = {}
        self._due: list[tuple[int, LaneKey]] = []

    def __len__(self) -> int:
        """How many lanes there are."""
        return len(self._lanes)

    def note(self, key: LaneKey, lane: Lane | None) -> bool:
        """A lane is as given now, or has ended; whether there is more room than before."""
        before = self._lanes.pop(key, None)
        change = (len(lane) if lane is not None else 0) - (len(before) if before is not None else 0)
        known = lane if lane is not None else before
        if known is not None and self._is_handled(key.agent, known.topic):
            self.total += change
        was_parked = before is not None and before.parked is not None
        is_parked = lane is not None and lane.parked is not None
        self.parked += is_parked - was_parked
        self.waiting[key.agent] += change - is_parked + was_parked
        if lane is None:
            self.blocked[key.agent].discard(key.key)
        else:
            self._lanes[key] = lane
            self.blocked[key.agent].add(key.key)
            if lane.due_ms is not None and (before is None or before.due_ms != lane.due_ms):
                heapq.heappush(self._due, (lane.due_ms, key))
        return change < 0

    def has_room(self, key: LaneKey) -> bool:
        """Whether another record may wait in this lane, which may be about to begin."""
        lane = self._lanes.get(key)
        return self.total < self._total_max and (lane is None or len(lane) < self._per_lane_max)

    def find(self, key: LaneKey) -> Lane | None:
        """The lane as last noted."""
        return self._lanes.get(key)

    def due_again(self, key: LaneKey) -> None:
        """The lane was taken by `take_due`; if it is still there it is due again at its time."""
        lane = self._lanes.get(key)
        if lane is not None and lane.due_ms is not None:
            heapq.heappush(self._due, (lane.due_ms, key))

    def next_due_ms(self) -> int | None:
        """When the next lane is due, None when none is."""
        while self._due:
            due_ms, key = self._due[0]
            lane = self._lanes.get(key)
            if lane is not None and lane.due_ms == due_ms:
                return due_ms
            heapq.heappop(self._due)  # it has changed since
        return None

    def take_due(self, now_ms: int) -> Iterator[tuple[LaneKey, Lane]]:
        """Lanes that are due, each once until it is noted with another time or given back with `due_again`."""
        while (due_ms := self.next_due_ms()) is not None and due_ms <= now_ms:
            _, key = heapq.heappop(self._due)
            yield key, self._lanes[key]

    def items(self) -> Iterator[tuple[LaneKey, Lane]]:
        """All lanes, as last noted."""
        yield from self._lanes.items()
