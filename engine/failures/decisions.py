"""Commands of dead letters."""

from typing import Annotated, ClassVar

import msgspec

from engine.declare.envelope import Id, Message

REASON_CHARACTERS_MAX = 1000


class DeadLetterCommand(Message, frozen=True, gc=False):
    """What all commands of dead letters have in common; they go to the partition that the letter's id names."""

    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "DeadLetter"
    aggregate_id_field: ClassVar[str | None] = "dead_letter_id"

    dead_letter_id: Id


class RetryDeadLetter(DeadLetterCommand, frozen=True, gc=False):
    """Ask for another try of a letter's record, not before `not_before_ms` (epoch, production time).

    `value` is what to try instead of the original value: the whole record, whose event id must be a new one. With
    `replays`, how often it had been tried again when this was asked, the same request twice is one try, even when the
    first one has failed again in between.
    """

    event_type: ClassVar[str] = "dead_letter.retry"

    not_before_ms: int = 0
    value: str | None = None
    replays: int | None = None


class DiscardDeadLetter(DeadLetterCommand, frozen=True, gc=False):
    """Ask to give a letter's record up, for a reason; those that wait behind it go on."""

    event_type: ClassVar[str] = "dead_letter.discard"

    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=REASON_CHARACTERS_MAX)]


DEAD_LETTER_TYPES: tuple[type[DeadLetterCommand], ...] = (RetryDeadLetter, DiscardDeadLetter)
