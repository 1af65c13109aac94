"""What the changelogs of positions say of applications: which topics they have processed, and how far.

This is how an application is recognised that has used a log before owners were written down.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Collection, Mapping
from typing import NamedTuple

from engine.log.ports import Broker, Record
from engine.positions.positions import POSITIONS, AgentPosition
from engine.store.changelogs import IDENTITY_KEY

# Each commit writes the positions that it has moved: the last ones name all topics in which anything happens.
TAIL_RECORDS = 2000
_SUFFIX = POSITIONS.changelog_topic("")

Unmarked = Mapping[str, frozenset[str]]
"""Topics that an application has processed records of, by application id."""


class AgentAt(NamedTuple):
    """An agent in one partition of its topic."""

    agent: str
    topic: str
    partition: int


async def unmarked_applications(broker: Broker, known: Collection[str], topics: Collection[str]) -> Unmarked:
    """Applications other than `known` that have processed any of `topics`."""
    found: dict[str, frozenset[str]] = {}
    if not topics:
        return found
    for name in await broker.topics():
        app_id = name.removesuffix(_SUFFIX)
        if not name.endswith(_SUFFIX) or app_id in known:
            continue
        positions = await positions_of(broker, app_id, TAIL_RECORDS)
        if shared := {at.topic for at, offset in positions.items() if offset > 0 and at.topic in topics}:
            found[app_id] = frozenset(shared)
    return found


async def positions_of(broker: Broker, app_id: str, records_max: int | None = None) -> Mapping[AgentAt, int]:
    """The next offset of each agent of an application; empty where there is no changelog.

    With `records_max` only so many records at the end of each partition of the changelog are read.
    """
    changelog = POSITIONS.changelog_topic(app_id)
    found: dict[AgentAt, int] = {}
    for number in range((await broker.topics()).get(changelog, 0)):
        async for record in records_from(broker, changelog, number, records_max=records_max):
            if record.value is not None and record.key != IDENTITY_KEY:
                row: AgentPosition = POSITIONS.decode_row(record.value)
                found[AgentAt(row.agent, row.topic, number)] = row.offset
    return found


async def records_from(
    broker: Broker, topic: str, number: int, offset: int = 0, *, records_max: int | None = None
) -> AsyncGenerator[Record, None]:
    """The committed records of a partition from `offset` on to its present end, and only the last ones if so wanted."""
    reader = broker.reader(number, [topic])
    try:
        await reader.start()
        start, end = (await reader.bounds())[topic]
        position = max(start, offset, 0 if records_max is None else end - records_max)
        reader.seek(topic, position)
        while position < end:
            records, position = (await reader.fetch()).get(topic, ((), position))
            for record in records:
                yield record
    finally:
        await reader.close()
