"""Making a record a dead letter: a row to work with, and a copy in `dead-letters` for everybody else."""

from __future__ import annotations

from typing import NamedTuple

from msgspec.structs import replace

from engine.declare.handlers import HEADER_BYTES_MAX, KEY_BYTES_MAX
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.classify import Failure, dead_letter_headers, describe, names_in
from engine.failures.dead_letters import DEAD_LETTERS, OPEN, Action, DeadLetter, add_letter, letter_id, with_action
from engine.failures.topics import DEAD_LETTERS as DEAD_LETTERS_TOPIC
from engine.log.ports import Record


class Failed(NamedTuple):
    """A record that failed for good: of which agent and topic, with what error, after how many retries.

    `letter` is the dead letter that was tried again with it, None for a first failure; `lane` its number in the lane
    of its aggregate, None where nothing waits behind it.
    """

    agent: str
    topic: str
    record: Record
    error: BaseException
    retry_count: int
    letter: int | None
    lane: int | None


def bury(work: UnitOfWork, failed: Failed) -> int:
    """Make a record a dead letter, in the unit of work that moves past it; returns the letter's number.

    One that was a dead letter before is the same letter again.
    """
    failure = describe(failed.agent, failed.topic, failed.error)
    known = work.get(DEAD_LETTERS, failed.letter) if failed.letter is not None else None
    if known is not None and failed.letter is not None:
        number = failed.letter
        again = replace(
            known, state=OPEN, lane=failed.lane, retry_count=failed.retry_count, **failure._asdict()
        )  # fmt: skip
        text = f"{failure.error_type}: {failure.error}"
        work.put(DEAD_LETTERS, number, with_action(again, Action(work.now_ms, "failed", None, text)))
    else:
        number = add_letter(work, _new_letter(work, failed, failure))
    text = letter_id(work.partition, number)
    headers = dead_letter_headers(
        failed.topic, work.partition, failed.agent, failed.record, failure, failed.retry_count, text
    )  # fmt: skip
    work.send_here(DEAD_LETTERS_TOPIC, failed.record.key, failed.record.value, headers)
    return number


def _new_letter(work: UnitOfWork, failed: Failed, failure: Failure) -> DeadLetter:
    """The row of a record; one that is too large goes without its bytes."""
    record = failed.record
    key_bytes, value_bytes = len(record.key or b""), len(record.value or b"")
    header_bytes = sum(len(name) + len(value or b"") for name, value in record.headers)
    complete = (
        key_bytes <= KEY_BYTES_MAX
        and value_bytes <= work.settings.record_bytes_max
        and header_bytes <= HEADER_BYTES_MAX
    )  # fmt: skip
    names = names_in(record.value if complete else None)
    return DeadLetter(
        agent=failed.agent,
        topic=failed.topic,
        partition=work.partition,
        offset=record.offset,
        timestamp_ms=record.timestamp_ms,
        key=record.key if key_bytes <= KEY_BYTES_MAX else None,
        value=record.value if complete else None,
        headers=tuple(record.headers) if complete else (),
        complete=complete,
        event_id=names.event_id,
        event_type=names.event_type,
        correlation_id=names.correlation_id,
        **failure._asdict(),
        failed_ms=work.now_ms,
        retry_count=failed.retry_count,
        lane=failed.lane,
    )
