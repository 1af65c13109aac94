"""Offsets of the records that wait in lanes, as readers may know them: as of the last commit."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Set

from engine.failures.lane_index import LaneIndex
from engine.failures.lanes import LaneKey, WaitingKey, WaitingRecord


class WaitingOffsets:
    """The offset of each record in a lane of one partition."""

    def __init__(self, index: LaneIndex) -> None:
        self._index = index
        self._offsets: dict[WaitingKey, int] = {}
        self._of_agent: defaultdict[str, set[int]] = defaultdict(set)

    def note(self, place: WaitingKey, record: WaitingRecord | None) -> None:
        """A record waits in this place now, or none does any more."""
        offset = self._offsets.pop(place, None)
        if offset is not None:
            self._of_agent[place.agent].discard(offset)
        if record is not None:
            self._offsets[place] = record.offset
            self._of_agent[place.agent].add(record.offset)

    def of(self, agent: str) -> Set[int]:
        """Offsets of the records that wait for this agent."""
        return self._of_agent[agent]

    def due(self, agent: str) -> Iterator[int]:
        """Offsets of those that wait in lanes which go on by themselves: no dead letter is at their front."""
        for place, offset in self._offsets.items():
            lane = self._index.find(LaneKey(place.agent, place.key)) if place.agent == agent else None
            if lane is not None and lane.due_ms is not None:
                yield offset
