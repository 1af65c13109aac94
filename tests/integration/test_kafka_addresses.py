"""Clients that know only addresses at which nobody answers any more, and a start that finds no coordinator."""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import AIOKafkaConnection
from aiokafka.errors import NodeNotReadyError
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest

from engine.log.kafka import clients as kafka_clients
from engine.log.kafka import member as kafka_member
from engine.log.kafka import producer as kafka_producer
from engine.log.kafka.connection import connection_options
from engine.log.kafka.producer import KafkaTransactions
from engine.log.kafka.reader import KafkaReader
from engine.log.ports import TopicSpec, TransportError
from engine.work import open_work
from streams.settings import Settings
from tests.apps import Seen, Tally, caught_up, connected, make_settings, publish, row, running, unique, wait_until
from tests.conftest import SharedKafka, start_broker
from tests.kafka import Extras, KafkaBroker, unused_port

pytestmark = pytest.mark.kafka

LIMIT_S = 1.0
DEADLINE_S = 30.0
SESSION_TIMEOUT_S = 2.0  # the member before cannot leave, and is missed first


def both_addresses(node: KafkaBroker, moves_to: int, folder: Path) -> Settings:
    """Settings of an installation whose node answers at its port, and later at the other one."""
    addresses = f"kafka://{node.bootstrap},127.0.0.1:{moves_to}"
    return make_settings(addresses, folder, partitions=1, session_timeout=SESSION_TIMEOUT_S)


def move(node: KafkaBroker, port: int) -> None:
    """Let a node answer at another port only, with the same data."""
    node.stop()
    node.port = port
    node.start()


async def test_a_worker_goes_on_when_all_brokers_have_moved_to_other_addresses(
    private_kafka_broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_clients, "UNREACHABLE_MAX_S", LIMIT_S)
    monkeypatch.setattr(kafka_member, "WATCH_INTERVAL_S", 0.1)
    monkeypatch.setattr(open_work, "COMMIT_TIMEOUT_S", 3.0)  # it ends the producer of the partition
    node, port, tally = private_kafka_broker, unused_port(also_next=True), Tally()
    settings = both_addresses(node, port, tmp_path)
    async with running(settings, [tally.service]) as app:
        await publish(app, tally.source, "key", b"1")
        await caught_up(app)
        assert app.engine.clients()[-1].name == kafka_member.NAME
        await asyncio.to_thread(move, node, port)
        async with connected(settings) as elsewhere:  # a client that has just begun knows where Kafka is
            await elsewhere.publish(tally.source.name, 0, [(b"key", b"2", ())])
        await wait_until(lambda: app.engine.clients()[-1].replaced > 0, "the consumer of the group is made anew")
        seen = Seen(("1", "2"))
        await wait_until(lambda: app.engine.is_ready() and row(app, tally.table, "key") == seen, "the worker goes on")


async def test_a_reader_of_changelogs_ends_when_all_brokers_have_moved_to_other_addresses(
    private_kafka_broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_clients, "UNREACHABLE_MAX_S", LIMIT_S)
    node, port = private_kafka_broker, unused_port(also_next=True)
    settings, spec = both_addresses(node, port, tmp_path), TopicSpec(unique("moved"), 1, True, None)
    async with connected(settings, [spec]):
        pass

    async def read(reader: KafkaReader) -> None:
        while True:
            await reader.fetch()

    readers = [KafkaReader(settings, 0, [spec.name]) for _ in range(2)]
    try:
        await readers[0].start()
        await readers[0].bounds()
        await asyncio.to_thread(move, node, port)
        with pytest.raises(TransportError, match="none of the brokers that the reader knows answers"):
            await asyncio.wait_for(read(readers[0]), DEADLINE_S)
        await readers[1].start()  # which is what its partition does next: it asks the addresses of the settings
        assert await readers[1].bounds() == {spec.name: (0, 0)}
    finally:
        for reader in readers:
            await reader.close()


async def test_a_reader_that_is_closed_while_a_fetch_waits_for_its_next_try_leaves_no_connection_behind(
    kafka_broker: SharedKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = make_settings(f"kafka://{kafka_broker.bootstrap}", tmp_path, partitions=1)
    spec, refused = TopicSpec(unique("waiting"), 1, True, None), asyncio.Event()
    async with connected(settings, [spec]):
        reader = KafkaReader(settings, 0, [spec.name])
        await reader.start()
        assert await reader.bounds() == {spec.name: (0, 0)}
        assert reader._consumer is not None
        client = reader._consumer._client
        send = client.send

        async def refuse_fetches(node: int, request: object, **options: object) -> object:
            if not isinstance(request, FetchRequest):
                return await send(node, request, **options)
            refused.set()
            raise NodeNotReadyError("a broker that is away")

        monkeypatch.setattr(client, "send", refuse_fetches)
        await refused.wait()
        await reader.close()
        assert [connection for connection in client._conns.values() if connection.connected()] == []


@pytest.fixture(scope="module")
def node_without_coordinators(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A Kafka that cannot have what transactions need: too few nodes for the topic of their states."""
    too_many = Extras(properties={"transaction.state.log.replication.factor": "3"})
    with start_broker(tmp_path_factory.mktemp("kafka-without-coordinators"), too_many) as node:
        yield node


async def test_the_start_of_a_transactional_producer_that_finds_no_coordinator_ends(
    node_without_coordinators: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_producer, "START_TIMEOUT_S", LIMIT_S)
    settings = make_settings(f"kafka://{node_without_coordinators.bootstrap}", tmp_path)
    producer = KafkaTransactions(settings, unique("nobody"), {}, 3)
    try:
        async with asyncio.timeout(DEADLINE_S):
            with pytest.raises(TransportError, match="partition 3: no coordinator has answered for 1 s"):
                await producer.start()
    finally:
        await producer.close()


async def test_a_client_that_is_given_up_while_it_connects_leaves_no_connection_behind(
    kafka_broker: SharedKafka, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, send = asyncio.Event(), AIOKafkaConnection.send

    async def never() -> None:
        asked.set()
        await asyncio.Event().wait()

    def wait_for_metadata(connection: AIOKafkaConnection, request: object, **options: object) -> object:
        return never() if isinstance(request, MetadataRequest) else send(connection, request, **options)

    monkeypatch.setattr(AIOKafkaConnection, "send", wait_for_metadata)
    client = AIOKafkaClient(**connection_options(make_settings(f"kafka://{kafka_broker.bootstrap}", tmp_path)))
    starting = asyncio.create_task(client.bootstrap())
    await asked.wait()
    gc.collect()  # what others have left
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        starting.cancel()
        await asyncio.wait([starting])
        await client.close()
        del client, starting
        gc.collect()
    assert [str(warning.message) for warning in said] == []
