"""Reading a topic up to a cut, and what its records are handed to."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, Final, NamedTuple

from engine import Envelope, Record, RecordError
from engine.inspection import Engine, LogError, TransportError
from tables.audit.findings import EVENT_UNREADABLE, Findings
from tables.audit.pace import Pace
from tables.audit.unsettled import NONE_UNSETTLED, Unsettled

SILENCE_S: Final = 30.0  # a transaction that is still open hides what comes behind it for as long

Apply = Callable[[Record, Envelope[Any]], None]


class Reader(NamedTuple):
    """What reads a topic: `apply` gets the events before `until`, but for those that its agent has not handled so."""

    apply: Apply
    until: int
    unsettled: Unsettled = NONE_UNSETTLED


class Unreadable(Exception):
    """A topic cannot be read to where it was cut."""


async def read_topic(
    engine: Engine,
    number: int,
    topic: str,
    readers: Sequence[Reader],
    findings: Findings,
    pace: Pace,
    only: bytes | None = None,
    passed: Callable[[int], None] = lambda records: None,
    start: int = 0,
) -> None:
    """Hand every event of a partition from `start` on to its readers, oldest first; with `only`, those under one key.

    Calls `passed` with the number of records that each fetch has passed. Raises Unreadable.
    """
    end = max((reader.until for reader in readers), default=0)
    source = engine.broker.reader(number, [topic])
    position, last_heard = start, time.monotonic()
    try:
        await source.start()
        source.seek(topic, start)
        while position < end:
            for records, reached in (await source.fetch()).values():
                before_end = [record for record in records if record.offset < end]
                await _hand_over(engine, topic, before_end, readers, findings, pace, only)
                passed(min(reached, end) - position)
                position, last_heard = reached, time.monotonic()
            if time.monotonic() - last_heard > SILENCE_S:
                raise Unreadable(f"{topic}/{number} cannot be read beyond offset {position}: a transaction is open")
    except (TransportError, LogError) as error:
        raise Unreadable(f"{topic}/{number} cannot be read: {error}") from error
    finally:
        await asyncio.shield(source.close())


async def _hand_over(
    engine: Engine,
    topic: str,
    records: Sequence[Record],
    readers: Sequence[Reader],
    findings: Findings,
    pace: Pace,
    only: bytes | None,
) -> None:
    decode = engine.registry.decode
    for record in records:
        if only is not None and record.key != only:
            continue
        try:
            event = decode(record.value or b"")
        except RecordError as error:
            findings.add(EVENT_UNREADABLE, f"the record cannot be read: {error}", topic, record.offset)
            continue
        findings.records += 1
        offset = record.offset
        for apply, until, (left_out, edited) in readers:
            if offset < until and offset not in left_out:
                apply(record, event if offset not in edited else decode(edited[offset]))
        if pace.is_over():
            await pace.turn()
