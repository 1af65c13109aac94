"""The service that carries out what people decide about dead letters, each decision once."""

from typing import Any

from msgspec.structs import replace

from engine.declare.envelope import Envelope
from engine.declare.errors import MissingKey, WrongPartition
from engine.declare.service import Service
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.classify import names_in
from engine.failures.dead_letters import (
    DISCARDED,
    RESOLVED,
    Action,
    DeadLetter,
    find_row,
    is_repetition,
    note_action,
    parse_letter_id,
    why_not_retry,
    why_too_late,
    with_action,
)
from engine.failures.decisions import DEAD_LETTER_TYPES, DiscardDeadLetter, RetryDeadLetter
from engine.failures.replay import give_up, send_home, try_again
from engine.failures.rules import difference
from engine.failures.topics import DEAD_LETTER_COMMANDS

service = Service("dead-letters", types=DEAD_LETTER_TYPES)


decisions = service.agent("manage-dead-letters", DEAD_LETTER_COMMANDS, help="Retry and discard dead letters.")


@decisions.on(RetryDeadLetter)
def retry(command: Envelope[RetryDeadLetter], work: UnitOfWork) -> None:
    """Try a letter's record again, edited or as it is; asking twice is the same as asking once.

    A decision that cannot be carried out, as another one came first, is a line in the letter's audit trail.
    """
    number, asked, by = _number(command, work), command.payload, command.metadata.user_id
    letter = find_row(work, number)
    value = asked.value.encode() if asked.value is not None else None
    if letter is None or is_repetition(letter, value, asked.replays):
        return
    refused = why_too_late(letter, asked.replays) or why_not_retry(
        letter, value is not None, work.now_ms, work.settings
    )
    if refused is not None:
        changes = difference(letter.value, value) if value is not None else None
        line = Action(work.now_ms, "retry" if value is None else "edit", by, changes, command.event_id, refused)
        note_action(work, number, letter, line)
        return
    if value is not None:
        letter = _edited(letter, value, command, work)
    home = _home(letter)
    if home is not None:
        send_home(work, number, letter, home, by, command.event_id)
    else:
        try_again(work, number, letter, max(work.now_ms, asked.not_before_ms), by, command.event_id)


@decisions.on(DiscardDeadLetter)
def discard(command: Envelope[DiscardDeadLetter], work: UnitOfWork) -> None:
    """Give a letter's record up; one that was processed after all stays so, and its audit trail says so."""
    number, reason, by = _number(command, work), command.payload.reason, command.metadata.user_id
    letter = find_row(work, number)
    if letter is None or letter.state == DISCARDED:
        return
    if letter.state == RESOLVED:
        refused = why_too_late(letter, None)
        note_action(work, number, letter, Action(work.now_ms, "discard", by, reason, command.event_id, refused))
        return
    give_up(work, number, letter, reason, by, command.event_id)


def _number(command: Envelope[Any], work: UnitOfWork) -> int:
    """The letter's number in this partition; raises WrongPartition when the letter is in another one."""
    partition, number = parse_letter_id(command.aggregate_id)
    if partition != work.partition:
        raise WrongPartition(f"dead letter {command.aggregate_id} belongs into partition {partition}: send it there")
    return number


def _edited(letter: DeadLetter, value: bytes, command: Envelope[RetryDeadLetter], work: UnitOfWork) -> DeadLetter:
    names = names_in(value)
    edit = Action(work.now_ms, "edit", command.metadata.user_id, difference(letter.value, value), command.event_id)
    return with_action(
        replace(letter, value=value, event_id=names.event_id, event_type=names.event_type, complete=True), edit
    )


def _home(letter: DeadLetter) -> bytes | None:
    """The key whose partition a record belongs into that lies in the wrong one; None for all others."""
    if letter.error_type == WrongPartition.__name__:
        return letter.key
    if letter.error_type == MissingKey.__name__ and letter.value is not None:
        aggregate_id = names_in(letter.value).aggregate_id
        return aggregate_id.encode() if aggregate_id else None
    return None
