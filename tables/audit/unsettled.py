"""Records that an agent has passed and not handled, or handled in another form, as of a cut."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final, NamedTuple

from engine import encode_prefix
from engine.inspection import CLOSED_DEAD_LETTERS, DEAD_LETTERS, DISCARDED, WAITING, StoreSnapshot
from tables.audit.pace import Pace
from tables.audit.walk import walk


class Unsettled(NamedTuple):
    """Offsets that an agent left out, and values that people edited before they were handled, by offset."""

    left_out: frozenset[int] = frozenset()
    edited: Mapping[int, bytes] = MappingProxyType({})


NONE_UNSETTLED: Final = Unsettled()


async def unsettled_of(rows: StoreSnapshot, agent: str, topic: str, pace: Pace) -> Unsettled:
    """What waits, is an open dead letter or was discarded is left out."""
    left_out: set[int] = set()
    edited: dict[int, bytes] = {}
    for table in (DEAD_LETTERS, CLOSED_DEAD_LETTERS):
        async for _, raw in walk(rows, table, pace):
            letter = table.decode_row(raw)
            if (letter.agent, letter.topic) != (agent, topic):
                continue
            if table is DEAD_LETTERS or letter.state == DISCARDED:
                left_out.add(letter.offset)
            elif letter.complete and letter.value is not None:
                edited[letter.offset] = letter.value
    async for _, raw in walk(rows, WAITING, pace, encode_prefix(agent)):
        left_out.add(WAITING.decode_row(raw).offset)
    return Unsettled(frozenset(left_out), edited)
