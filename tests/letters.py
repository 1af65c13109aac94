"""What tests do with dead letters: find them, and decide about them as people do."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from engine.declare.envelope import Metadata, encode_envelope, new_envelope
from engine.failures.dead_letters import CLOSED_DEAD_LETTERS, DEAD_LETTERS, DeadLetter, letter_id
from engine.failures.decisions import DeadLetterCommand, DiscardDeadLetter, RetryDeadLetter
from engine.failures.lanes import LANES, WAITING, Lane, LaneKey, WaitingKey, WaitingRecord
from engine.failures.topics import DEAD_LETTER_COMMANDS
from engine.faust.app import EngineApp
from engine.log.ports import Outgoing

USER = "operator-1"


def open_letters(app: EngineApp) -> dict[str, DeadLetter]:
    """Open letters by id, oldest first within a partition."""
    return {
        letter_id(number, key): letter
        for number, task in sorted(app.engine.tasks.items())
        for key, letter in task.scan(DEAD_LETTERS)
    }


def closed_letters(app: EngineApp) -> dict[str, DeadLetter]:
    """Closed letters by id."""
    return {
        letter_id(number, key): letter
        for number, task in sorted(app.engine.tasks.items())
        for key, letter in task.scan(CLOSED_DEAD_LETTERS)
    }


def lanes(app: EngineApp) -> dict[LaneKey, Lane]:
    """All lanes."""
    return {key: lane for task in app.engine.tasks.values() for key, lane in task.scan(LANES)}


def waiting(app: EngineApp) -> dict[WaitingKey, WaitingRecord]:
    """All records that wait."""
    return {key: record for task in app.engine.tasks.values() for key, record in task.scan(WAITING)}


def decision(command: DeadLetterCommand) -> Outgoing:
    """A decision as a record."""
    letter = command.dead_letter_id
    envelope = new_envelope(
        command,
        event_id=str(uuid.uuid4()),
        aggregate_id=letter,
        timestamp=datetime.now(UTC),
        metadata=Metadata(user_id=USER),
    )
    return letter.encode(), encode_envelope(envelope), ()


async def decide(app: EngineApp, command: DeadLetterCommand, partition: int | None = None) -> None:
    """Write a decision into the partition of its letter."""
    number = int(command.dead_letter_id.partition("-")[0]) if partition is None else partition
    await app.engine.broker.publish(DEAD_LETTER_COMMANDS.name, number, [decision(command)])


async def retry(app: EngineApp, *letters: str, value: str | None = None, not_before_ms: int = 0) -> None:
    """Ask for another try of these letters."""
    for letter in letters:
        await decide(app, RetryDeadLetter(letter, not_before_ms, value))


async def discard(app: EngineApp, *letters: str, reason: str = "test") -> None:
    """Give these letters up."""
    for letter in letters:
        await decide(app, DiscardDeadLetter(letter, reason))
