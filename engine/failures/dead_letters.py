"""Dead letters as rows to work with: what failed, why, what was done about it, and how that ends.

The topic `dead-letters` tells others; these rows, in the partition that the record came from, are what people list,
retry and discard. A letter is open until its record has been processed after all or is discarded; then it moves to the
closed ones, which are kept for a while as an audit trail.
"""

from __future__ import annotations

import struct
import time
from typing import Final, Literal

import msgspec
from msgspec.structs import replace

from engine.declare.settings import Settings
from engine.declare.table import KeyCodec, Table
from engine.declare.unit_of_work import UnitOfWork

OPEN: Final = "open"
RETRYING: Final = "retrying"
"""Somebody asked for a retry, which has not ended yet."""
RESOLVED: Final = "resolved"
DISCARDED: Final = "discarded"

LetterState = Literal["open", "retrying", "resolved", "discarded"]
ActionName = Literal["retry", "edit", "failed", "resolved", "discard"]

CLOSED_KEPT_S: Final = 90 * 86_400.0  # as long as the topic `dead-letters` keeps them
ACTIONS_MAX: Final = 100
TIMERS_AGENT: Final = "timers"


class InvalidLetterId(ValueError):
    """The text is not the id of a dead letter."""

    retryable = False
    parks = False


class Action(msgspec.Struct, frozen=True, gc=False):
    """One line of a letter's audit trail; `at_ms` is production time (epoch), `by` the user who asked, if known.

    `decision` is the id of the command that asked for it. `refused` says why it was not carried out, as a stable code
    and a sentence; None when it was.
    """

    at_ms: int
    action: ActionName
    by: str | None = None
    detail: str | None = None
    decision: str | None = None
    refused: tuple[str, str] | None = None


class DeadLetter(msgspec.Struct, frozen=True, gc=False):
    """A record that an agent could not process, and what became of it.

    `topic`, `partition`, `offset`, `timestamp_ms`, `key`, `value` and `headers` are the record's own; the bytes are
    those to be tried again, which an edit has replaced. `complete` is False when the record was too large to be kept
    here: it is in the topic `dead-letters` only. For a timer, `agent` is `timers`, `topic` names its kind and `offset`
    is when it was due. `lane` is the record's number among those of its aggregate, for whom the letter keeps all later
    ones waiting; None where nothing waits. `retry_count` counts tries after the first one, `replays` how often people
    asked for one. Times are production time, epoch ms.
    """

    agent: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]
    complete: bool
    event_id: str | None
    event_type: str | None
    correlation_id: str | None
    error_type: str
    error: str
    trace: str
    fingerprint: str
    failed_ms: int
    retry_count: int = 0
    lane: int | None = None
    state: LetterState = OPEN
    replays: int = 0
    actions: tuple[Action, ...] = ()
    closed_ms: int | None = None


class LetterCount(msgspec.Struct, frozen=True, gc=False):
    """How many letters of a topic are open in one partition."""

    count: int = 0


NUMBER_KEY: KeyCodec[int] = KeyCodec(struct.Struct(">Q").pack, lambda raw: struct.unpack(">Q", raw)[0])

DEAD_LETTERS: Table[int, DeadLetter] = Table(
    "dead-letters", DeadLetter, NUMBER_KEY, help="records that could not be processed, by the time they failed (µs)",
    cached=False,
)  # fmt: skip
CLOSED_DEAD_LETTERS: Table[int, DeadLetter] = Table(
    "closed-dead-letters", DeadLetter, NUMBER_KEY, help="dead letters that were processed after all, or discarded",
    marked_at_ms=lambda letter: letter.closed_ms or 0, kept_s=CLOSED_KEPT_S, cached=False,
)  # fmt: skip
DEAD_LETTER_COUNTS: Table[str, LetterCount] = Table(
    "dead-letter-counts", LetterCount, help="open dead letters of each topic"
)


def letter_id(partition: int, number: int) -> str:
    """The id of a letter for people: the partition it is in, and its number there."""
    return f"{partition}-{number}"


def parse_letter_id(text: str) -> tuple[int, int]:
    """Partition and number of a letter; raises InvalidLetterId."""
    partition, separator, number = text.partition("-")
    if not separator or not (partition.isascii() and partition.isdecimal() and number.isascii() and number.isdecimal()):
        raise InvalidLetterId(f"{text!r} is not the id of a dead letter, like 3-1764043200000000")
    if len(partition) > 5 or len(number) > 18:
        raise InvalidLetterId(f"{text!r} is not the id of a dead letter, like 3-1764043200000000")
    return int(partition), int(number)


def add_letter(work: UnitOfWork, letter: DeadLetter) -> int:
    """Keep a new letter; returns its number, the time at which it is kept (epoch, µs)."""
    number = time.time_ns() // 1000
    while work.get(DEAD_LETTERS, number) is not None or work.get(CLOSED_DEAD_LETTERS, number) is not None:
        number += 1
    work.put(DEAD_LETTERS, number, letter)
    _count(work, letter.topic, 1)
    return number


def close_letter(
    work: UnitOfWork,
    number: int,
    state: LetterState,
    by: str | None = None,
    detail: str | None = None,
    decision: str | None = None,
) -> None:
    """Move a letter to the closed ones, if it is open."""
    letter = work.get(DEAD_LETTERS, number)
    if letter is None:
        return
    action: ActionName = "resolved" if state == RESOLVED else "discard"
    closed = with_action(
        replace(letter, state=state, closed_ms=work.now_ms), Action(work.now_ms, action, by, detail, decision)
    )
    work.delete(DEAD_LETTERS, number)
    work.put(CLOSED_DEAD_LETTERS, number, closed)
    _count(work, letter.topic, -1)


def find_row(work: UnitOfWork, number: int) -> DeadLetter | None:
    """A letter, open or closed; None where there is none."""
    return work.get(DEAD_LETTERS, number) or work.get(CLOSED_DEAD_LETTERS, number)


def note_action(work: UnitOfWork, number: int, letter: DeadLetter, action: Action) -> None:
    """Write a line into the audit trail of a letter, open or closed, which stays as it is otherwise."""
    table = DEAD_LETTERS if letter.closed_ms is None else CLOSED_DEAD_LETTERS
    work.put(table, number, with_action(letter, action))


def with_action(letter: DeadLetter, action: Action) -> DeadLetter:
    """The letter with another line in its audit trail, whose oldest lines give way at ACTIONS_MAX."""
    return replace(letter, actions=(*letter.actions, action)[-ACTIONS_MAX:])


def is_repetition(letter: DeadLetter, value: bytes | None, replays: int | None) -> bool:
    """Whether a retry, edited with `value` or as it is, asks for what was or is being done already.

    `replays` is how often the letter had been tried again when it was asked for, None where that is not known.
    """
    if letter.state == DISCARDED or value not in (None, letter.value):
        return False
    return letter.state != OPEN or replays not in (None, letter.replays)


def why_too_late(letter: DeadLetter, replays: int | None) -> tuple[str, str] | None:
    """A stable code and a sentence that say which other decision about a letter came first; None when none did."""
    if letter.state == DISCARDED:
        return DISCARDED, "it was discarded"
    if letter.state == RESOLVED:
        return RESOLVED, "it was processed after all"
    if letter.state == RETRYING:
        return RETRYING, "it is being tried again"
    if replays not in (None, letter.replays):
        return "tried_meanwhile", "it was tried again meanwhile, and has failed once more: look at it anew"
    return None


def why_not_retry(letter: DeadLetter, edited: bool, now_ms: int, settings: Settings) -> tuple[str, str] | None:
    """A stable code and a sentence that say why a letter may not be tried again; None when it may.

    A letter that is being tried already, or is closed, is not refused: asking twice is the same as asking once.
    """
    if letter.state != OPEN:
        return None
    if letter.replays >= settings.replays_max:
        return (
            "too_many_replays",
            f"it was tried again {letter.replays} times ({settings.variable('replays_max')}): send what it asks for as "
            "a new command, then discard it, or raise that setting",
        )
    if edited:
        return None
    if not letter.complete:
        return "too_large", "the record is too large to be kept here: edit it, or discard it if nobody needs it"
    if now_ms - letter.failed_ms > settings.replay_max_age * 1000:
        return (
            "too_old",
            f"it is older than {settings.variable('replay_max_age')}: copies of it can no longer be told apart. Edit "
            "it, which makes it a new command, or discard it if nobody needs it",
        )
    return None


def _count(work: UnitOfWork, topic: str, change: int) -> None:
    known = work.get(DEAD_LETTER_COUNTS, topic) or LetterCount()
    work.put(DEAD_LETTER_COUNTS, topic, LetterCount(known.count + change))
