"""What became of decisions about dead letters: each one's own line in its letter's audit trail says so."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Annotated, Final, NamedTuple

import msgspec
from aiohttp import web

from engine.declare.envelope import derived_id
from engine.declare.partition import Partition
from engine.declare.service import Service
from engine.failures.dead_letters import OPEN, DeadLetter, letter_id
from engine.log.ports import Position
from engine.partition.engine import Engine
from engine.partition.task import PartitionTask
from engine.web.answers import PASSING
from engine.web.dead_letters.queries import REFUSED_MAX, Candidate, find_letter
from engine.web.dead_letters.views import LETTER_PATH
from engine.web.routes.queries import ask

LETTERS_PER_CHUNK: Final = 200  # about 5 ms, and an address of 4 KiB
_hop = LETTER_PATH[0]

service = Service("letter-decisions")


class Verdict(NamedTuple):
    """A letter after a decision about it; `refused` is why it was not carried out, None when it was."""

    letter: DeadLetter
    refused: tuple[str, str] | None


class DecisionRefused(msgspec.Struct, frozen=True, gc=False):
    """A decision about a letter that was not carried out, and why: a stable code and a sentence."""

    id: str
    reason: str
    detail: str


class Decisions(msgspec.Struct, frozen=True):
    """What became of decisions; `refused` are the first 100 of those that were not carried out.

    `undecided` are those of which nothing is known yet.
    """

    applied: int = 0
    refused: list[DecisionRefused] = []
    refused_count: int = 0
    undecided: int = 0


class DecisionsAsked(msgspec.Struct, frozen=True):
    """What another worker is asked for: decisions of one request about letters of one partition.

    The last one is at `offset`, and is waited for at most `wait_s` seconds.
    """

    decisions: str
    letters: Annotated[list[int], msgspec.Meta(max_length=LETTERS_PER_CHUNK)]
    offset: int
    wait_s: float


def decision_id(decisions: str, partition: int, number: int) -> str:
    """The id of the decision about one letter, by that of all decisions of a request."""
    return derived_id(decisions, letter_id(partition, number))


def verdict(task: Partition, number: int, decision: str) -> Verdict | None:
    """What became of a decision about a letter, None when that is not known."""
    letter = find_letter(task, number)
    if letter is None:
        return None
    line = next((line for line in letter.actions if line.decision == decision), None)
    # Without a line it asked for what was done already, or was a dead letter itself.
    if line is None and letter.state == OPEN:
        return None
    return Verdict(letter, line.refused if line is not None else None)


async def what_became_of(
    request: web.Request, decisions: str, chosen: Sequence[Candidate], positions: Sequence[Position], wait_s: float
) -> Decisions:
    """Return what became of the decisions about the chosen letters within `wait_s` seconds.

    `decisions` is the id from which those of all follow (see `decision_id`); `positions` are where they are.
    """
    ends: defaultdict[int, int] = defaultdict(int)
    for position in positions:
        ends[position.partition] = max(ends[position.partition], position.offset)
    letters: defaultdict[int, list[int]] = defaultdict(list)
    for candidate in chosen:
        letters[candidate.partition].append(candidate.number)
    deadline = asyncio.get_running_loop().time() + wait_s

    async def of_partition(partition: int) -> list[Decisions]:
        return [
            await _of_chunk(request, partition, DecisionsAsked(decisions, chunk, ends[partition], _left_s(deadline)))
            for chunk in _chunks(letters[partition])
        ]

    found = await asyncio.gather(*(of_partition(partition) for partition in letters))
    parts = [part for parts in found for part in parts]
    return Decisions(
        sum(part.applied for part in parts),
        [refused for part in parts for refused in part.refused][:REFUSED_MAX],
        sum(part.refused_count for part in parts),
        sum(part.undecided for part in parts),
    )


def _chunks(numbers: Sequence[int]) -> Iterator[list[int]]:
    for first in range(0, len(numbers), LETTERS_PER_CHUNK):
        yield list(numbers[first : first + LETTERS_PER_CHUNK])


def _left_s(deadline: float) -> float:
    return max(0.0, deadline - asyncio.get_running_loop().time())


async def _of_chunk(request: web.Request, partition: int, asked: DecisionsAsked) -> Decisions:
    """What became of some decisions, wherever their letters are; undecided ones where that cannot be known now."""
    try:
        return await ask(request, decisions_about, partition, asked, asked.wait_s)
    except PASSING:
        return Decisions(undecided=len(asked.letters))


@service.query("letter-decisions")
async def decisions_about(engine: Engine, task: PartitionTask, asked: DecisionsAsked) -> Decisions:
    """What became of some decisions about letters of one partition, after waiting for the last one."""
    partition, refused, undecided = task.number, [], 0
    await task.waiters.wait(_hop.name, _hop.topic.name, asked.offset + 1, asked.wait_s, is_exact=True)
    task = engine.task(partition)
    for number in asked.letters:
        found = verdict(task, number, decision_id(asked.decisions, partition, number))
        if found is None:
            undecided += 1
        elif found.refused is not None:
            refused.append(DecisionRefused(letter_id(partition, number), *found.refused))
    await asyncio.sleep(0)
    applied = len(asked.letters) - len(refused) - undecided
    return Decisions(applied, refused[:REFUSED_MAX], len(refused), undecided)
