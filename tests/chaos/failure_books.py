"""What the changelogs say of records that failed: which wait, which are dead letters, and how each of those ended."""

from __future__ import annotations

import base64
import json
import struct
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from typing import Any, NamedTuple

from tests.chaos.world import Record, World

NUMBER = struct.Struct(">Q")
MOVED = "sent to the partition of its key"


class Fate(Enum):
    """What has become of a record that its agent has passed."""

    DONE = "done"  # nothing is kept of it: its handler was through with it at once, or after some tries
    WAITING = "waiting"
    OPEN = "open dead letter"
    RESOLVED = "resolved"  # it was a dead letter, and its handler got through with it when it was retried
    MOVED = "moved"  # it was a dead letter, and was sent to the partition where it belongs
    DISCARDED = "discarded"


HANDLED = (Fate.DONE, Fate.RESOLVED)


class Source(NamedTuple):
    """An agent in one partition of its topic."""

    agent: str
    topic: str
    partition: int


class Place(NamedTuple):
    """A record as one agent sees it."""

    agent: str
    partition: int
    offset: int


class Letter(NamedTuple):
    """A dead letter; `parks` says whether its aggregate waits behind it, `failures` how often it became one."""

    partition: int
    number: int
    row: Mapping[str, Any]

    @property
    def id(self) -> str:
        """The id that people use."""
        return f"{self.partition}-{self.number}"

    @property
    def place(self) -> Place:
        """The record that failed."""
        return Place(self.row["agent"], self.partition, self.row["offset"])

    @property
    def state(self) -> str:
        """As in the row."""
        return str(self.row["state"])

    @property
    def parks(self) -> bool:
        """Whether its aggregate waits behind it."""
        return self.row["lane"] is not None

    @property
    def failures(self) -> int:
        """How often its record became a dead letter."""
        return 1 + [action["action"] for action in self.row["actions"]].count("failed")

    @property
    def is_moved(self) -> bool:
        """Whether its record was sent to another partition."""
        return any(action["action"] == "resolved" and action["detail"] == MOVED for action in self.row["actions"])

    @property
    def key(self) -> bytes:
        """The record's key, empty where there is none."""
        return base64.b64decode(self.row["key"] or "")

    @property
    def value(self) -> bytes:
        """The record's value, empty where there is none."""
        return base64.b64decode(self.row["value"] or "")


class Waiting(NamedTuple):
    """A record that waits: the number it has among those of its aggregate, and the letter that is retried with it."""

    agent: str
    partition: int
    key: bytes
    number: int
    offset: int
    letter: int | None

    @property
    def place(self) -> Place:
        """The record that waits."""
        return Place(self.agent, self.partition, self.offset)


class Lane(NamedTuple):
    """An aggregate whose records wait, from number `first` on, or behind a letter that has this number."""

    agent: str
    partition: int
    key: bytes
    first: int
    end: int
    due_ms: int | None
    parked: int | None


class FailureBooks:
    """All tables of records that failed, in every partition, beside the positions of agents."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.positions: dict[Source, int] = {}
        self.letters: list[Letter] = []
        self.waiting: list[Waiting] = []
        self.lanes: list[Lane] = []
        self.counts: dict[tuple[int, str], int] = {}
        for partition in world.partitions():
            self._read(partition)
        self.letters_at = _by_place(self.letters)
        self.waiting_at = _by_place(self.waiting)
        self.letters_by_number = {(letter.partition, letter.number): letter for letter in self.letters}

    def _read(self, partition: int) -> None:
        def rows(table: str) -> Iterator[tuple[bytes, dict[str, Any]]]:
            for key, value in self.world.rows(table, partition).items():
                yield key, json.loads(value)

        for _, row in rows("positions"):
            self.positions[Source(row["agent"], row["topic"], partition)] = row["offset"]
        for table in ("dead-letters", "closed-dead-letters"):
            self.letters += [Letter(partition, NUMBER.unpack(key)[0], row) for key, row in rows(table)]
        for key, row in rows("waiting-records"):
            agent, aggregate = _agent_and_key(key[:-8])
            number = NUMBER.unpack(key[-8:])[0]
            self.waiting.append(Waiting(agent, partition, aggregate, number, row["offset"], row["letter"]))
        for key, row in rows("waiting-aggregates"):
            bounds = row["first"], row["end"], row["due_ms"], row["parked"]
            self.lanes.append(Lane(_agent_and_key(key)[0], partition, _agent_and_key(key)[1], *bounds))
        for key, row in rows("dead-letter-counts"):
            self.counts[partition, key.decode()] = row["count"]

    def passed(self, source: Source) -> Iterator[Record]:
        """The records that an agent has passed, in their order."""
        end = self.positions.get(source, 0)
        for record in self.world.records(source.topic):
            if record.partition == source.partition and record.offset < end:
                yield record

    def fate_of(self, place: Place) -> Fate:
        """What has become of a record that its agent has passed; where the books contradict themselves, any of it."""
        letter = next(iter(self.letters_at.get(place, ())), None)
        if letter is not None and letter.state == "discarded":
            return Fate.DISCARDED
        if place in self.waiting_at:
            return Fate.WAITING
        if letter is None:
            return Fate.DONE
        if letter.state != "resolved":
            return Fate.OPEN
        return Fate.MOVED if letter.is_moved else Fate.RESOLVED

    def waits_in_place(self, place: Place) -> bool:
        """Whether all later records of the aggregate have to wait for this one.

        A letter that kept nothing waiting is retried behind what has come meanwhile.
        """
        letter = next(iter(self.letters_at.get(place, ())), None)
        return self.fate_of(place) in (Fate.WAITING, Fate.OPEN) and (letter is None or letter.parks)


def _by_place(entries: Sequence[Any]) -> dict[Place, list[Any]]:
    found = defaultdict(list)
    for entry in entries:
        found[entry.place].append(entry)
    return dict(found)


def _agent_and_key(raw: bytes) -> tuple[str, bytes]:
    """Length (2 bytes), agent, length (4 bytes), key."""
    end = 2 + int(struct.unpack(">H", raw[:2])[0])
    return raw[2:end].decode(), raw[end + 4 :]
