"""The records of one agent that wait for calls to the outside, in the order in which they may be called and handled.

Records of the topic are handled in its order, from the front on. Records whose turn it is in their lanes stand beside
them: they move no position, and they make the room that a record at the front may wait for.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain, islice
from typing import Any, Final

from engine.failures.lanes import WaitingKey
from engine.log.ports import Record

BACKOFF_S: Final = 0.1


class Entry:
    """A record of the window. `next_offset` is where the agent is once it is handled.

    A record that has waited in a lane has a `turn`, its place there, and moves no position. One that is `held` was not
    its aggregate's next when its call would have begun: there was none. `span` is that of the record, from its first
    call on, where tracing is on. `backoff_s` is the pause before the next call, if one fails.
    """

    __slots__ = ("backoff_s", "ended", "error", "held", "next_offset", "outcome", "record", "span", "turn")

    def __init__(self, record: Record, next_offset: int, turn: WaitingKey | None = None) -> None:
        self.record = record
        self.next_offset = next_offset
        self.turn = turn
        self.held = False
        self.ended = False
        self.outcome: Any = None
        self.error: BaseException | None = None
        self.span: Any = None
        self.backoff_s = BACKOFF_S

    def begin_anew(self) -> None:
        """Forget what its call came to: it has to be called for again."""
        self.held = self.ended = False
        self.outcome = self.error = None


class CallWindow:
    """Entries by key and in order; of each key at most one call runs at a time."""

    def __init__(self) -> None:
        self._records: deque[Entry] = deque()
        self._records_of: dict[bytes | None, deque[Entry]] = {}  # the first of each key may call, or does
        self._turns_of: dict[bytes | None, deque[Entry]] = {}  # so do these, and before those
        self._ended_turns: deque[Entry] = deque()
        self._ready: deque[Entry] = deque()
        self._called: set[bytes | None] = set()  # keys of which a call runs

    def __bool__(self) -> bool:
        """Whether anything waits here."""
        return bool(self._records or self._turns_of)

    def __len__(self) -> int:
        """How many records of the topic wait here."""
        return len(self._records)

    def __iter__(self) -> Iterator[Entry]:
        """The records of the topic, in its order."""
        return iter(self._records)

    def waiting(self) -> Iterator[Entry]:
        """All entries: the records of the topic, and those that have waited in lanes."""
        yield from self._records
        yield from chain.from_iterable(self._turns_of.values())

    def add(self, entries: Iterable[Entry]) -> None:
        """Take entries, in their order."""
        for entry in entries:
            if entry.turn is None:
                self._records.append(entry)
            by_key = self._records_of if entry.turn is None else self._turns_of
            queue = by_key.setdefault(entry.record.key, deque())
            queue.append(entry)
            if len(queue) == 1:
                self._ready.append(entry)

    def clear(self) -> None:
        """Forget everything."""
        for entries in (self._records, self._records_of, self._turns_of, self._ended_turns, self._ready, self._called):
            entries.clear()

    # ---- calls

    def take_ready(self) -> Entry | None:
        """An entry that may be called for now, None when there is none: calls of one key come one after the other."""
        for index, entry in enumerate(self._ready):
            if entry.record.key not in self._called:
                del self._ready[index]
                return entry
        return None

    def ask_again(self, entry: Entry) -> None:
        """Call for an entry once more, behind the others."""
        self._ready.append(entry)

    def call_begins(self, entry: Entry) -> None:
        """A call for this entry runs from now on."""
        self._called.add(entry.record.key)

    def call_ended(self, entry: Entry) -> None:
        """The call for this entry is over, whatever it came to."""
        self._called.discard(entry.record.key)

    def end(self, entry: Entry) -> None:
        """An entry can be handled."""
        entry.ended = True
        if entry.turn is not None:
            self._ended_turns.append(entry)

    def hold_back(self, key: bytes | None) -> None:
        """A lane has begun while a record of its key waited to be handled: that one waits for the lane, too."""
        queue = self._records_of.get(key)
        if queue is not None and queue[0].ended:
            queue[0].begin_anew()
            queue[0].held = queue[0].ended = True

    # ---- handling

    def ended_turn(self) -> Entry | None:
        """The next entry with a turn that can be handled, None when there is none."""
        return self._ended_turns[0] if self._ended_turns else None

    def take_turn(self) -> None:
        """The entry of `ended_turn` is handled: the next one of its key may call."""
        entry = self._ended_turns.popleft()
        self._next_of(self._turns_of, entry.record.key)

    def take(self, count: int) -> list[Entry]:
        """Take records of the topic from the front: the next one of each key may call."""
        taken = list(islice(self._records, count))
        for entry in taken:
            self._records.popleft()
            self._next_of(self._records_of, entry.record.key)
        return taken

    def _next_of(self, by_key: dict[bytes | None, deque[Entry]], key: bytes | None) -> None:
        queue = by_key[key]
        queue.popleft()
        if queue:
            self._ready.append(queue[0])
        else:
            del by_key[key]
