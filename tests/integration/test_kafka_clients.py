"""Clients that last as long as their worker are made anew after a failure, and each request gets its right outcome."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from streams.settings import Settings
from streams.topics import ORDER_COMMANDS
from streams.transport import kafka_producer
from streams.transport.base import (
    Broker,
    Outgoing,
    RecordsRefused,
    RecordsTooLarge,
    TopicSpec,
    TransportError,
)
from streams.transport.kafka_broker import KafkaBroker
from streams.transport.kafka_publisher import KafkaPublisher
from tests.apps import DEADLINE_S, connected, make_settings, read_committed, running, unique
from tests.conftest import SharedKafka
from tests.integration.test_doctor_kafka import change
from tests.integration.web import client_of
from tests.kafka import KafkaBroker as KafkaNode

PARTITIONS = 2
PROBED = PARTITIONS  # one more: where it is seen whether a changed setting has come into force
BIG = b"x" * 50_000
HOURS_AHEAD_S = 2 * 3600.0


@pytest.fixture
def settings(kafka_broker: SharedKafka, tmp_path: Path) -> Settings:
    return make_settings(f"kafka://{kafka_broker.bootstrap}", tmp_path)


@pytest.fixture
def spec() -> TopicSpec:
    return TopicSpec(unique("clients"), PARTITIONS + 1, False, None)


def record(value: str | bytes) -> Sequence[Outgoing]:
    return [(b"key", value.encode() if isinstance(value, str) else value, ())]


async def values(broker: Broker, topic: str, partition: int = 0) -> list[bytes | None]:
    return [found.value for found in await read_committed(broker, topic, partition)]


async def limit(broker: Broker, spec: TopicSpec, record_bytes_max: int) -> None:
    """Let a topic take records of this size at most; returns when it is so."""
    assert isinstance(broker, KafkaBroker)
    await change(broker.settings.bootstrap_servers[0], spec.name, max_message_bytes=str(record_bytes_max))
    deadline = time.monotonic() + DEADLINE_S
    while await is_refused(broker, spec) != (len(BIG) > record_bytes_max):
        assert time.monotonic() < deadline


async def is_refused(broker: Broker, spec: TopicSpec) -> bool:
    try:
        await broker.publish(spec.name, PROBED, record(BIG))
    except RecordsTooLarge:
        return True
    return False


class ClockAhead:
    """The module time of a machine whose clock is ahead."""

    def time(self) -> float:
        """Seconds since 1970, as this machine believes."""
        return time.time() + HOURS_AHEAD_S


# ---- the producer for publishing


async def test_a_refused_record_leaves_the_ones_after_it_in_peace(settings: Settings, spec: TopicSpec) -> None:
    async with connected(settings, [spec]) as broker:
        await broker.publish(spec.name, 0, record("before"))
        await limit(broker, spec, 1000)
        with pytest.raises(RecordsTooLarge, match=f"{spec.name}.*max.message.bytes"):
            await broker.publish(spec.name, 0, record(BIG))
        await broker.publish(spec.name, 0, record("after"))
        await limit(broker, spec, 1_000_000)
        await broker.publish(spec.name, 0, record(BIG))
        assert await values(broker, spec.name) == [b"before", b"after", BIG]


async def test_each_of_many_requests_around_a_refused_one_gets_its_own_outcome(
    settings: Settings, spec: TopicSpec
) -> None:
    names = [f"{number}" for number in range(40)]
    async with connected(settings, [spec]) as broker:
        await limit(broker, spec, 1000)
        sent = [
            broker.publish(spec.name, partition, record(BIG if int(name) % 8 == 3 else name))
            for name in names
            for partition in range(PARTITIONS)
        ]
        outcomes = await asyncio.gather(*sent, return_exceptions=True)
        for partition in range(PARTITIONS):
            of_partition = outcomes[partition::PARTITIONS]
            refused = [
                name for name, outcome in zip(names, of_partition, strict=True) if isinstance(outcome, Exception)
            ]
            assert refused == [name for name in names if int(name) % 8 == 3]
            assert {type(outcome) for outcome in of_partition if isinstance(outcome, Exception)} == {RecordsTooLarge}
            offsets = [outcome[0].offset for outcome in of_partition if not isinstance(outcome, BaseException)]
            assert offsets == list(range(len(offsets)))
            taken = [name.encode() for name in names if name not in refused]
            assert await values(broker, spec.name, partition) == taken


async def test_a_time_that_kafka_refuses_is_named_and_ends_with_the_wrong_clock(
    settings: Settings, spec: TopicSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with connected(settings, [spec]) as broker:
        with monkeypatch.context() as patched:
            patched.setattr(kafka_producer, "time", ClockAhead())
            with pytest.raises(RecordsRefused, match="this worker's clock says"):
                await broker.publish(spec.name, 0, record("of the future"))
        await broker.publish(spec.name, 0, record("of now"))
        assert await values(broker, spec.name) == [b"of now"]


async def test_an_http_request_that_kafka_refuses_is_told_why_and_the_next_one_is_taken(
    private_kafka_broker: KafkaNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap = private_kafka_broker.bootstrap
    item = {"product_id": "s", "quantity": 1, "price": {"amount": "1", "currency": "USD"}}
    order = {"customer_id": "c", "items": [item]}
    async with running(make_settings(f"kafka://{bootstrap}", tmp_path, partitions=1)) as app, client_of(app) as client:
        await change(bootstrap, ORDER_COMMANDS.name, max_message_bytes="20000")
        large = order | {"items": [item] * 500}
        while (refused := await client.post("/orders", json=large)).status_code == 202:
            await asyncio.sleep(0.01)  # the change is not in force yet
        assert refused.status_code == 413
        assert "max.message.bytes" in refused.json()["detail"]
        assert "nothing was accepted" in refused.json()["detail"]
        assert (await client.post("/orders", json=order)).status_code == 202
        with monkeypatch.context() as patched:
            patched.setattr(kafka_producer, "time", ClockAhead())
            refused = await client.post("/orders", json=order)
        assert refused.status_code == 503
        assert "this worker's clock says" in refused.json()["detail"]
        assert "nothing was accepted" in refused.json()["detail"]
        assert (await client.post("/orders", json=order)).status_code == 202


async def test_what_was_acknowledged_around_a_restart_is_there_once_and_in_order(
    private_kafka_broker: KafkaNode, tmp_path: Path
) -> None:
    settings = make_settings(f"kafka://{private_kafka_broker.bootstrap}", tmp_path)
    spec = TopicSpec(unique("restarted"), PARTITIONS, False, None)
    acknowledged: list[list[bytes]] = [[] for _ in range(PARTITIONS)]
    is_over = asyncio.Event()

    async def publish_on(broker: Broker, partition: int) -> None:
        for number in range(1_000_000):
            if is_over.is_set():
                return
            value = b"%d" % number
            try:
                await broker.publish(spec.name, partition, record(value))
            except TransportError:
                continue
            acknowledged[partition].append(value)

    async with connected(settings, [spec]) as broker:
        writing = [asyncio.create_task(publish_on(broker, partition)) for partition in range(PARTITIONS)]
        await asyncio.sleep(0.3)
        await asyncio.to_thread(private_kafka_broker.restart)
        before = [len(values) for values in acknowledged]
        await asyncio.sleep(1.0)
        is_over.set()
        await asyncio.gather(*writing)
        for partition in range(PARTITIONS):
            assert len(acknowledged[partition]) > before[partition], "publishing goes on after the restart"
            found = [value for value in await values(broker, spec.name, partition) if value in acknowledged[partition]]
            assert found == acknowledged[partition]


async def test_a_record_without_acknowledgement_is_unknown_and_never_repeated(
    private_kafka_broker: KafkaNode, tmp_path: Path
) -> None:
    settings = make_settings(f"kafka://{private_kafka_broker.bootstrap}", tmp_path)
    spec = TopicSpec(unique("paused"), PARTITIONS, False, None)
    async with connected(settings, [spec]) as broker:
        assert isinstance(broker, KafkaBroker)
        await broker.publisher.client.close()
        broker.publisher = KafkaPublisher(broker.options, broker._explain, acknowledgement_timeout_s=1.0)
        await broker.publisher.client.start()
        await broker.publish(spec.name, 0, record("before"))
        node = private_kafka_broker._process
        assert node is not None
        node.send_signal(signal.SIGSTOP)
        await asyncio.to_thread(os.waitpid, node.pid, os.WUNTRACED)  # every thread stands still
        first, second = (
            asyncio.create_task(broker.publish(spec.name, 0, record(name))) for name in ("first", "second")
        )
        try:
            with pytest.raises(TransportError, match="no acknowledgement") as unknown:
                await first
        finally:
            node.send_signal(signal.SIGCONT)
        assert not isinstance(unknown.value, RecordsRefused), "it may be there"
        assert await second < await broker.publish(spec.name, 0, record("after"))
        found = await values(broker, spec.name)
        assert [value for value in found if value != b"first"] == [b"before", b"second", b"after"]
        assert found.count(b"first") <= 1


# ---- the consumer of metadata and offsets


async def test_all_topics_are_listed_with_their_partitions_after_one_was_created(
    settings: Settings, spec: TopicSpec
) -> None:
    created_later = TopicSpec(unique("later"), 1, False, None)
    async with connected(settings, [spec]) as broker:
        await broker.create_topics([spec, created_later])
        found = await broker.topics()
        assert (found[spec.name], found[created_later.name]) == (PARTITIONS + 1, 1)
        assert 0 not in found.values()


async def test_a_consumer_of_offsets_that_fails_is_replaced(settings: Settings, spec: TopicSpec) -> None:
    async with connected(settings, [spec]) as broker:
        assert isinstance(broker, KafkaBroker)
        await broker.publish(spec.name, 0, record("one"))
        async with broker._offsets.use() as consumer:
            await consumer._client.close()
            consumer._client.cluster._brokers.clear()  # as if it knew of no broker any more
        with pytest.raises(TransportError, match="cannot list the topics"):
            await broker.topics()
        assert spec.name in await broker.topics()
        assert await broker.end_offset(spec.name, 0) == 1
