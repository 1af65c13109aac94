"""Where records come from: a running worker over HTTP, or Kafka itself."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from engine.cli.client import Refused, WorkerClient, client_for, path_of
from engine.cli.console import Failure
from engine.cli.program import in_words
from engine.declare.settings import Settings
from engine.log.ports import TransportError
from engine.observe.records import bounds, record_view

if TYPE_CHECKING:
    from engine.log.ports import Broker, Reader

PAGE_RECORDS = 1000

RecordView = Mapping[str, Any]
"""A record as `engine.observe.records.record_view` makes it."""


class TopicRecords(Protocol):
    """The records of one topic, partition by partition."""

    async def bounds(self) -> Mapping[int, tuple[int, int]]:
        """First and next offset of each partition; raises Failure when there is no such topic."""

    async def read(self, partition: int, offset: int) -> tuple[Sequence[RecordView], int]:
        """Some of the records from `offset` on, as far as they are there, and the offset to read next."""


class HttpRecords(TopicRecords):
    """Records of a topic from a running worker."""

    def __init__(self, client: WorkerClient, topic: str) -> None:
        self._client = client
        self._topic = topic

    async def bounds(self) -> Mapping[int, tuple[int, int]]:
        """First and next offset of each partition."""
        for topic in (await self._client.get("/topics"))["items"]:
            if topic["name"] == self._topic:
                return {
                    found["partition"]: (found["start_offset"], found["end_offset"]) for found in topic["partitions"]
                }
        raise no_topic(self._topic)

    async def read(self, partition: int, offset: int) -> tuple[Sequence[RecordView], int]:
        """At most PAGE_RECORDS records."""
        page = await self._page(partition, offset)
        return page["items"], page["next_offset"]

    async def up_to_end(self, partition: int, offset: int) -> AsyncIterator[RecordView]:
        """All records from `offset` to the end of the partition."""
        while True:
            page = await self._page(partition, offset)
            for record in page["items"]:
                yield record
            offset = page["next_offset"]
            if offset >= page["end_offset"]:
                return

    async def _page(self, partition: int, offset: int) -> Any:
        path = path_of("topics", self._topic, "records")
        try:
            return await self._client.get(path, partition=partition, offset=offset, limit=PAGE_RECORDS)
        except Refused as refused:
            raise (no_topic(self._topic) if refused.status == 404 else refused) from refused


class BrokerRecords(TopicRecords):
    """Records of a topic straight from a broker that this process has opened."""

    def __init__(self, broker: Broker, topic: str) -> None:
        self._broker = broker
        self._topic = topic
        self._readers: dict[int, Reader] = {}

    async def bounds(self) -> Mapping[int, tuple[int, int]]:
        """First and next offset of each partition."""
        count = (await self._broker.topics()).get(self._topic)
        if count is None:
            raise no_topic(self._topic)
        return dict(enumerate((await bounds(self._broker, [self._topic], count))[self._topic]))

    async def read(self, partition: int, offset: int) -> tuple[Sequence[RecordView], int]:
        """What the next fetch brings."""
        reader = self._readers.get(partition)
        if reader is None:
            reader = self._readers[partition] = self._broker.reader(partition, [self._topic])
            await reader.start()
            reader.seek(self._topic, offset)
        records, position = (await reader.fetch()).get(self._topic, ((), offset))
        return [record_view(partition, record) for record in records], position

    async def close(self) -> None:
        """Let go of connections."""
        for reader in self._readers.values():
            await reader.close()


def no_topic(name: str) -> Failure:
    """There is no such topic."""
    return Failure(f"there is no topic {name}; {in_words('topics')} lists them")


@asynccontextmanager
async def open_broker(settings: Settings) -> AsyncIterator[Broker]:
    """The broker of these settings, opened by this process; raises Failure."""
    # aiokafka and Faust take half a second to import, which other commands need not wait for.
    from engine.log.embedded.broker import EmbeddedBroker
    from engine.log.kafka.broker import KafkaBroker

    broker = KafkaBroker(settings) if settings.transport == "kafka" else EmbeddedBroker(settings)
    try:
        await broker.start()
        yield broker
    except TransportError as error:
        raise Failure(str(error)) from error
    finally:
        await broker.stop()


@asynccontextmanager
async def open_records(settings: Settings, url: str | None, topic: str) -> AsyncIterator[TopicRecords]:
    """The records of a topic: from Kafka itself, otherwise from the worker that holds the log."""
    if settings.transport == "kafka" and url is None:
        async with open_broker(settings) as broker:
            records = BrokerRecords(broker, topic)
            try:
                yield records
            finally:
                await records.close()
    else:
        async with client_for(settings, url) as client:
            yield HttpRecords(client, topic)
