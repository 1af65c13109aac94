"""Moving the ownership of topics on purpose: the new mark first, then the fences, so that no late commit counts."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Mapping
from contextlib import aclosing

import msgspec

from engine.health.check import some
from engine.installation.folder import Remembered
from engine.installation.mark import (
    MOVES_MAX,
    Mark,
    Marks,
    Move,
    NotTheOwner,
    first_mark,
    now_text,
    user_and_machine,
)
from engine.installation.marks import Changes
from engine.installation.ownership import Ownership
from engine.installation.rules import Applicant, lost_log, other_owners, other_release, other_stores
from engine.installation.unmarked import AgentAt, positions_of, records_from
from engine.log.ports import Broker, TransactionHangs
from engine.positions.positions import POSITIONS

log = logging.getLogger(__name__)

NO_INSTALLATION = "none"  # of an application that has written no mark


class _Undecided(Exception):
    """Kafka does not know any more how it decided a transaction."""


class Adoption:
    """Makes the installation of a data folder the owner of the topics of its application.

    `agents` are the topics that the application's agents read, by agent.
    """

    def __init__(self, ownership: Ownership, broker: Broker, agents: Mapping[str, str]) -> None:
        self._ownership = ownership
        self._broker = broker
        self._agents = agents

    async def adopt(self, reason: str, *, even_if_alive: bool = False) -> tuple[Mark, bool]:
        """The owner's mark, and whether it has changed; False where the installation was the owner already.

        Raises NotTheOwner when records would be processed twice, or workers of the present owner run.
        """
        ownership = self._ownership
        await ownership.marks.create()
        marks = await ownership.marks.read()
        applicant, unmarked = await ownership.applicant(), await ownership.unmarked(marks)
        others = other_owners(applicant, marks, unmarked)
        mine, remembered = marks.get(ownership.app_id), applicant.remembered
        if mine is not None and not others and remembered == Remembered(ownership.app_id, mine.installation):
            return mine, False
        await self._refuse(applicant, mine, others)
        before = [*others, *([ownership.app_id] if mine is not None else [])]
        if not even_if_alive:
            await self._see_that_nobody_works(before or [ownership.app_id])
        installation = remembered.installation if remembered is not None else str(uuid.uuid4())
        by = user_and_machine()

        def decide(marks: Marks) -> Changes:
            return self._changes(marks, others, installation, by, reason)

        marks = await ownership.marks.change(decide)
        for app_id in before:
            await self._fence(app_id)
        ownership.folder.write(Remembered(ownership.app_id, installation))
        return marks[ownership.app_id], True

    async def _refuse(self, applicant: Applicant, mine: Mark | None, others: Mapping[str, frozenset[str]]) -> None:
        """Raise NotTheOwner when adopting would make things worse."""
        problem = None
        if applicant.remembered is not None and applicant.remembered.app_id != applicant.app_id:
            problem = other_stores(applicant, applicant.remembered)
        elif others:
            problem = await self._repetition(others)
        elif mine is None:
            problem = lost_log(applicant)
        else:
            problem = other_release(applicant.release, mine)
        if problem is not None:
            raise NotTheOwner(problem)

    async def _repetition(self, others: Mapping[str, frozenset[str]]) -> str | None:
        """What this application would process although others have; None when it is nothing."""
        positions = await positions_of(self._broker, self._ownership.app_id)
        topics = await self._broker.topics()
        shared = frozenset[str]().union(*others.values())
        unread = [
            f"{topic}/{number} from offset {begin} on"
            for agent, topic in self._agents.items()
            for number in range(topics.get(topic, 0) if topic in shared else 0)
            for begin in (positions.get(AgentAt(agent, topic, number), 0),)
            if await self._has_records(topic, number, begin)
        ]
        if not unread:
            return None
        setting = self._ownership.application.variable("app_id")
        return (
            f"application {self._ownership.app_id!r} has not processed all records that are kept for {some(others)}: "
            f"{some(set(unread))}. It would process them again: decide, charge and count each a second time. Nothing "
            f"was changed. Set {setting}={min(others)}, under which they were processed."
        )

    async def _has_records(self, topic: str, number: int, offset: int) -> bool:
        async with aclosing(records_from(self._broker, topic, number, offset)) as records:
            return await anext(records, None) is not None

    async def _see_that_nobody_works(self, app_ids: list[str]) -> None:
        for app_id in app_ids:
            if workers := sorted(await self._broker.members(app_id)):
                raise NotTheOwner(
                    f"{len(workers)} workers of application {app_id!r} run, at {some(workers)}. Nothing was changed. "
                    "Stop them first. If they cannot be reached, --even-if-alive goes on: they are fenced, so that "
                    "nothing they commit afterwards counts, and end by themselves."
                )

    def _changes(
        self, marks: Marks, others: Mapping[str, frozenset[str]], installation: str, by: str, reason: str
    ) -> Changes:
        ownership = self._ownership
        mine = marks.get(ownership.app_id)
        before = [marks[app_id] for app_id in others if app_id in marks] + ([mine] if mine is not None else [])
        nameless = [(app_id, NO_INSTALLATION) for app_id in others if app_id not in marks]
        owners = [(mark.app_id, mark.installation) for mark in before] + nameless
        moves = [Move(app_id, named, now_text(), by, reason) for app_id, named in owners]
        kept = [move for mark in before for move in mark.moves]
        topics = ownership.topics | (frozenset(mine.topics) if mine is not None else frozenset())
        new = first_mark(ownership.app_id, installation, topics, ownership.release)
        adopted = msgspec.structs.replace(new, moves=(*kept, *moves)[-MOVES_MAX:])
        return {**{mark.app_id: _without(mark, topics) for mark in before}, ownership.app_id: adopted}

    async def _fence(self, app_id: str) -> None:
        """End the transactions of an application's workers; they look at the mark before they open others."""
        for number in range((await self._broker.topics()).get(POSITIONS.changelog_topic(app_id), 0)):
            producer = self._broker.named_producer(f"{app_id}-{number}", number)
            try:
                await producer.settle([POSITIONS.changelog_topic(app_id)], _leave_undecided)
                await producer.start()
            except (TransactionHangs, _Undecided) as error:
                log.warning("partition %d of %s is fenced when a worker starts on it: %s", number, app_id, error)
            finally:
                await producer.close()


async def _leave_undecided() -> None:
    """Nothing is aborted here that a store may have: a worker settles it with its store at hand, before it fences."""
    raise _Undecided("what became of its last transaction is not known")


def _without(mark: Mark, topics: frozenset[str]) -> Mark | None:
    """What another application keeps; None when it is nothing."""
    kept = tuple(topic for topic in mark.topics if topic not in topics)
    return msgspec.structs.replace(mark, topics=kept) if kept else None
