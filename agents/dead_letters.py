"""The service that carries out what people decide about dead letters, each decision once."""

from typing import Any

from msgspec.structs import replace

from agents.domain.dead_letters import difference
from streams.engine.batch import Batches
from streams.engine.dead_letters import (
    DEAD_LETTERS,
    OPEN,
    Action,
    DeadLetter,
    parse_letter_id,
    why_not_retry,
    with_action,
)
from streams.engine.failures import names_in
from streams.engine.handlers import Handlers
from streams.engine.replay import give_up, send_home, try_again
from streams.engine.unit_of_work import UnitOfWork
from streams.envelope import Envelope
from streams.errors import MissingKey, WrongPartition
from streams.events.dead_letters import DEAD_LETTER_TYPES, DiscardDeadLetter, RetryDeadLetter
from streams.service import Service
from streams.topics import DEAD_LETTER_COMMANDS

service = Service("dead-letters", types=DEAD_LETTER_TYPES)
handlers = Handlers()


@service.agent(DEAD_LETTER_COMMANDS)
async def manage_dead_letters(batches: Batches) -> None:
    """Retry and discard dead letters."""
    async for batch in batches:
        await batch.process(handlers)


@handlers.on(RetryDeadLetter)
def retry(command: Envelope[RetryDeadLetter], work: UnitOfWork) -> None:
    """Try a letter's record again, edited or as it is; asking twice, or for one that may not be, changes nothing."""
    number, asked = _number(command, work), command.payload
    letter = work.get(DEAD_LETTERS, number)
    if letter is None or letter.state != OPEN or asked.replays not in (None, letter.replays):
        return
    if why_not_retry(letter, asked.value is not None, work.now_ms, work.settings) is not None:
        return
    if asked.value is not None:
        letter = _edited(letter, asked.value.encode(), command, work)
    home = _home(letter)
    if home is not None:
        send_home(work, number, letter, home, command.metadata.user_id)
    else:
        try_again(work, number, letter, max(work.now_ms, asked.not_before_ms), command.metadata.user_id)


@handlers.on(DiscardDeadLetter)
def discard(command: Envelope[DiscardDeadLetter], work: UnitOfWork) -> None:
    """Give a letter's record up; one that is closed stays as it is."""
    number = _number(command, work)
    letter = work.get(DEAD_LETTERS, number)
    if letter is not None:
        give_up(work, number, letter, command.payload.reason, command.metadata.user_id)


def _number(command: Envelope[Any], work: UnitOfWork) -> int:
    """The letter's number in this partition; raises WrongPartition when the letter is in another one."""
    partition, number = parse_letter_id(command.aggregate_id)
    if partition != work.partition:
        raise WrongPartition(f"dead letter {command.aggregate_id} belongs into partition {partition}: send it there")
    return number


def _edited(letter: DeadLetter, value: bytes, command: Envelope[RetryDeadLetter], work: UnitOfWork) -> DeadLetter:
    names = names_in(value)
    edit = Action(work.now_ms, "edit", command.metadata.user_id, difference(letter.value, value))
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
