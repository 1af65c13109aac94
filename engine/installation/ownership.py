"""The ownership of a worker: claimed before anything of the application starts, and confirmed while it runs."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable
from pathlib import Path

from engine.declare.settings import Settings
from engine.installation.folder import Remembered, StoresFolder
from engine.installation.mark import Mark, Marks, NotTheOwner, Release, first_mark, release_of, renewed
from engine.installation.marks import Changes, MarkTopic
from engine.installation.rules import Applicant, loss, old_workers, refusal
from engine.installation.unmarked import Unmarked, unmarked_applications
from engine.log.ports import Broker, TransportError
from engine.positions.positions import POSITIONS

log = logging.getLogger(__name__)

CONFIRM_INTERVAL_S = 10.0


class Ownership:
    """What a worker knows of the owner of its topics.

    `topics` are those that the application owns: it writes them, or decides about their commands. A topic that it only
    reads may be another application's.
    """

    def __init__(
        self,
        settings: Settings,
        broker: Broker,
        topics: Iterable[str],
        stores: Path,
        release: Release | None = None,
        on_loss: Callable[[str], None] = lambda problem: None,
    ) -> None:
        """`release` is by default this one of the application.

        `on_loss` is called once, with what to say, when a running worker is not the owner any more.
        """
        self.app_id = settings.app_id
        self.topics = frozenset(topics)
        self.application = settings.application
        self.release = release or release_of(settings.application)
        self.marks = MarkTopic(broker)
        self.folder = StoresFolder(stores, settings.application, is_kept=settings.transport != "memory")
        self.mark: Mark | None = None
        self._on_loss: Callable[[str], None] | None = on_loss
        self._watch: asyncio.Task[None] | None = None
        self._settings = settings
        self._broker = broker

    def of(self, broker: Broker) -> Ownership:
        """The same on a broker that somebody else has opened."""
        return Ownership(self._settings, broker, self.topics, self.folder.path, self.release)

    async def start(self) -> None:
        """Claim the topics, and confirm them from then on; see `claim`.

        A worker that has nothing to commit would not hear otherwise that it is no longer the owner.
        """
        await self.claim()
        if self._watch is None:
            self._watch = asyncio.create_task(self._confirm_now_and_then(), name="owner")

    async def stop(self) -> None:
        """Confirm no more, and let go of connections."""
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
            await asyncio.wait([watch])
        await self.marks.close()

    async def _confirm_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(CONFIRM_INTERVAL_S)
            try:
                await self.confirm()
            except NotTheOwner:
                return  # `on_loss` has ended the worker
            except TransportError as error:
                log.info("the owner cannot be confirmed now: %s", error)

    async def claim(self) -> None:
        """See that this worker may start, and write the mark where it is missing or knows less.

        Raises NotTheOwner, and TransportError when the log cannot be asked.
        """
        await self.marks.create()
        marks = await self.marks.read()
        applicant, unmarked = await self.applicant(), await self.unmarked(marks)
        mine = marks.get(self.app_id)
        if (mine.level if mine is not None else 1) < self.release.oldest_beside:
            workers = await self._broker.members(self.app_id)
            if (problem := old_workers(applicant, mine, workers)) is not None:
                raise NotTheOwner(problem)

        def decide(marks: Marks) -> Changes:
            return self._changes(applicant, marks, unmarked)

        self.mark = mark = (await self.marks.change(decide))[self.app_id]
        self.folder.write(Remembered(self.app_id, mark.installation))

    def _changes(self, applicant: Applicant, marks: Marks, unmarked: Unmarked) -> Changes:
        if (problem := refusal(applicant, marks, unmarked)) is not None:
            raise NotTheOwner(problem)
        before = marks.get(self.app_id)
        if before is None:
            known = applicant.remembered
            installation = known.installation if known is not None else str(uuid.uuid4())
            return {self.app_id: first_mark(self.app_id, installation, self.topics, self.release)}
        after = renewed(before, self.topics, self.release)
        return {self.app_id: after} if after != before else {}

    async def applicant(self) -> Applicant:
        """This worker, as the rules look at it."""
        return Applicant(
            self.application,
            self.app_id,
            self.topics,
            self.release,
            self.folder.path.absolute(),
            self.folder.read(),
            self.folder.has_stores(),
            POSITIONS.changelog_topic(self.app_id) in await self._broker.topics(),
        )

    async def unmarked(self, marks: Marks) -> Unmarked:
        """Applications without a mark that have processed this application's topics; not asked once it has a mark."""
        if self.app_id in marks:
            return {}
        return await unmarked_applications(self._broker, {*marks, self.app_id}, self.topics)

    async def confirm(self) -> None:
        """See that the topics are still this installation's, and may be worked on by this release.

        Raises NotTheOwner after it has called `on_loss`, and TransportError when the log cannot be asked. To be called
        after the predecessor of a partition is fenced: an adoption writes the mark first and fences then, so that
        either this worker is fenced by it, or it sees the mark here.
        """
        try:
            await self._confirm()
        except NotTheOwner as error:
            on_loss, self._on_loss = self._on_loss, None
            if on_loss is not None:
                on_loss(str(error))
            raise

    async def _confirm(self) -> None:
        try:
            marks = await self.marks.read()
        except TransportError:
            if await self.marks.is_there():
                raise
            marks = {}
        if self.mark is None:
            raise TransportError("the topics are not claimed yet")
        if (problem := loss(self.mark, self.topics, self.release, marks, self.application)) is not None:
            raise NotTheOwner(problem)
        if self.app_id not in marks:  # the topic was removed or made anew, and nobody else has claimed anything in it
            await self.claim()
