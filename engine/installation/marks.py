"""Reading and changing the marks of a log, one change after the other."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping

from engine.installation.mark import INSTALLATION_TOPIC, TRANSACTIONAL_ID, Mark, Marks, decode_mark, encode_mark
from engine.log.ports import Broker, Outgoing, ProducerFenced, Reader, TopicSpec, TransportError

Changes = Mapping[str, Mark | None]
Decide = Callable[[Marks], Changes]

PAUSE_S = 0.02
FENCED_PAUSE_S = 0.05, 0.5


class MarkTopic:
    """The compacted topic of marks, which has one partition and belongs to no application.

    A reader is kept open, so that looking again costs one question. After an error it is made anew.
    """

    def __init__(self, broker: Broker, topic: str = INSTALLATION_TOPIC) -> None:
        self._broker = broker
        self._topic = topic
        self._reader: Reader | None = None
        self._position = 0
        self._marks: dict[str, Mark] = {}
        self._turn = asyncio.Lock()

    async def is_there(self) -> bool:
        """Whether the topic exists."""
        return self._topic in await self._broker.topics()

    async def create(self) -> None:
        """Create the topic where it is missing."""
        await self._broker.create_topics([TopicSpec(self._topic, 1, compacted=True, retention_ms=None)])

    async def read(self) -> Marks:
        """All marks that are committed now; raises TransportError."""
        async with self._turn:
            try:
                return await self._read_on()
            except TransportError:
                await self.close()
                raise

    async def _read_on(self) -> Marks:
        reader = self._reader
        if reader is None:
            reader = self._reader = self._broker.reader(0, [self._topic])
            self._position, self._marks = 0, {}
            await reader.start()
        start, end = (await reader.bounds())[self._topic]
        if end < self._position:  # another topic of the same name
            self._position, self._marks = 0, {}
        position = max(self._position, start)
        reader.seek(self._topic, position)
        while position < end:
            records, position = (await reader.fetch()).get(self._topic, ((), position))
            for record in records:
                self._apply(record.key, record.value)
        self._position = position
        return dict(self._marks)

    def _apply(self, key: bytes | None, value: bytes | None) -> None:
        app_id = (key or b"").decode()
        if value is None:
            self._marks.pop(app_id, None)
        else:
            self._marks[app_id] = decode_mark(value)

    async def change(self, decide: Decide) -> Marks:
        """Write what `decide` makes of the present marks, and return all marks as every reader sees them then.

        A program that changes marks at the same time fences this one, or is fenced: `decide` is called once more for
        each attempt, with what is there then. It may raise.
        """
        while decide(marks := await self.read()):
            producer = self._broker.named_producer(TRANSACTIONAL_ID)
            try:
                await producer.settle([self._topic], _nothing_to_distrust)
                await producer.start()
                await self._settled()
                if not (changes := decide(await self.read())):
                    continue
                await producer.begin()
                await producer.send({(self._topic, 0): _records(changes)})
                await producer.commit()
            except ProducerFenced:
                await asyncio.sleep(random.uniform(*FENCED_PAUSE_S))  # two that start again at once meet again
                continue
            finally:
                await producer.close()
            await self._settled()
            return await self.read()
        return marks

    async def _settled(self) -> None:
        """Wait until no transaction is open: readers see then all that was committed before."""
        while True:
            await self.read()
            if self._position >= await self._broker.end_offset(self._topic, 0):
                return
            await asyncio.sleep(PAUSE_S)

    async def close(self) -> None:
        """Let go of the reader."""
        reader, self._reader = self._reader, None
        if reader is not None:
            await reader.close()


async def _nothing_to_distrust() -> None:
    """No store is made of marks."""


def _records(changes: Changes) -> list[Outgoing]:
    return [(app_id.encode(), None if mark is None else encode_mark(mark), ()) for app_id, mark in changes.items()]
