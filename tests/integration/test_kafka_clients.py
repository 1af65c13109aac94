"""Clients that last as long as their worker are made anew after a failure, and each request gets its right outcome."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer

from engine.faust.app import EngineApp
from engine.faust.kafka import KafkaConsumer
from engine.health import broker_watch
from engine.health.broker_watch import BrokerWatch
from engine.health.faults import Faults
from engine.log.kafka import broker as kafka_broker_module
from engine.log.kafka import clients as kafka_clients
from engine.log.kafka import member as kafka_member
from engine.log.kafka import producer as kafka_producer
from engine.log.kafka.broker import KafkaBroker
from engine.log.kafka.publisher import KafkaPublisher
from engine.log.ports import (
    Broker,
    Outgoing,
    RecordsRefused,
    RecordsTooLarge,
    TopicSpec,
    TransportError,
)
from streams.app import create_app
from streams.settings import Settings
from streams.topics import ORDER_COMMANDS
from tests.apps import (
    DEADLINE_S,
    Tally,
    caught_up,
    connected,
    make_settings,
    publish,
    read_committed,
    running,
    unique,
    wait_until,
)
from tests.conftest import SharedKafka, start_broker
from tests.integration.test_doctor_kafka import change
from tests.integration.web import client_of
from tests.kafka import KafkaBroker as KafkaNode

pytestmark = pytest.mark.kafka
PARTITIONS = 2
PROBED = PARTITIONS  # one more: where it is seen whether a changed setting has come into force
BIG = b"x" * 50_000
HOURS_AHEAD_S = 3 * 3600.0
YEAR_S = 365 * 86400.0


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaNode]:
    """A Kafka of this module's own, which its tests may stop and change."""
    with start_broker(tmp_path_factory.mktemp("kafka-of-clients")) as node:
        yield node


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

    def __init__(self, ahead_s: float = HOURS_AHEAD_S) -> None:
        self._ahead_s = ahead_s

    def time(self) -> float:
        """Seconds since 1970, as this machine believes."""
        return time.time() + self._ahead_s


async def pause(node: KafkaNode) -> None:
    """Let a broker answer nothing, without that a connection breaks."""
    assert node._process is not None
    node._process.send_signal(signal.SIGSTOP)
    await asyncio.to_thread(os.waitpid, node._process.pid, os.WUNTRACED)  # every thread of it stands still


def go_on(node: KafkaNode) -> None:
    """End a pause."""
    assert node._process is not None
    node._process.send_signal(signal.SIGCONT)


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
    node: KafkaNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bootstrap = node.bootstrap
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
    node: KafkaNode, tmp_path: Path
) -> None:
    settings = make_settings(f"kafka://{node.bootstrap}", tmp_path)
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
        await asyncio.to_thread(node.restart)
        before = [len(values) for values in acknowledged]
        await asyncio.sleep(1.0)
        is_over.set()
        await asyncio.gather(*writing)
        for partition in range(PARTITIONS):
            assert len(acknowledged[partition]) > before[partition], "publishing goes on after the restart"
            found = [value for value in await values(broker, spec.name, partition) if value in acknowledged[partition]]
            assert found == acknowledged[partition]


async def test_a_record_without_acknowledgement_is_unknown_and_never_repeated(node: KafkaNode, tmp_path: Path) -> None:
    settings = make_settings(f"kafka://{node.bootstrap}", tmp_path)
    spec = TopicSpec(unique("paused"), PARTITIONS, False, None)
    async with connected(settings, [spec]) as broker:
        assert isinstance(broker, KafkaBroker)
        await broker.publisher.client.close()
        broker.publisher = KafkaPublisher(broker.options, broker._explain, acknowledgement_timeout_s=1.0)
        await broker.publisher.client.start()
        await broker.publish(spec.name, 0, record("before"))
        await pause(node)
        first, second = (
            asyncio.create_task(broker.publish(spec.name, 0, record(name))) for name in ("first", "second")
        )
        try:
            with pytest.raises(TransportError, match="no acknowledgement") as unknown:
                await first
        finally:
            go_on(node)
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


# ---- what the worker says of its clients and its clock


@pytest.mark.parametrize(
    ("ahead_s", "said"),
    [(HOURS_AHEAD_S, "3 hours ahead of"), (-YEAR_S, "365 days behind"), (YEAR_S, "365 days ahead of")],
)
async def test_a_clock_that_is_off_is_a_fault_until_it_is_right(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, ahead_s: float, said: str
) -> None:
    faults = Faults()
    async with connected(settings) as broker:
        watch = BrokerWatch(broker, broker.clients, faults)
        with monkeypatch.context() as patched:
            patched.setattr(kafka_broker_module, "time", ClockAhead(ahead_s))
            await watch._compare_clocks()
            (fault,) = faults.open()
            assert fault.kind == "clock"
            assert f"this worker's clock is {said} the broker's" in fault.detail
        await watch._compare_clocks()
        assert not faults.open()
        assert watch.clock_ahead_s is not None
        assert abs(watch.clock_ahead_s) < 1.0


async def test_health_and_doctor_name_a_clock_that_is_off(
    node: KafkaNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_broker_module, "time", ClockAhead())
    settings = make_settings(f"kafka://{node.bootstrap}", tmp_path, partitions=1)
    async with running(settings) as app, client_of(app) as client:
        await wait_until(app.engine.faults.open, "the clocks are compared")
        health = await client.get("/healthz")
        assert health.status_code == 503
        assert "this worker's clock is 3 hours ahead" in health.json()["detail"]
        checks = {check["check"]: check for check in (await client.get("/doctor")).json()}
        assert not checks["clock"]["ok"]
        assert "NTP" in checks["clock"]["advice"]
        assert checks["clients"]["ok"]


async def test_a_client_that_goes_on_failing_makes_the_worker_unready_and_unhealthy_until_it_works(
    node: KafkaNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_clients, "ANSWER_S", 0.2)
    monkeypatch.setattr(broker_watch, "NOT_READY_AFTER_S", 0.4)
    monkeypatch.setattr(broker_watch, "FAULT_AFTER_S", 1.0)
    for interval in ("CLOCK_INTERVAL_S", "CLOCK_INTERVAL_IN_TROUBLE_S", "CLIENTS_INTERVAL_S"):
        monkeypatch.setattr(broker_watch, interval, 0.1)
    settings = make_settings(f"kafka://{node.bootstrap}", tmp_path, partitions=1)
    async with running(settings) as app, client_of(app) as client:
        assert (await client.get("/readyz")).status_code == 200
        await pause(node)
        try:
            await wait_until(app.engine.broker_watch.not_ready, "the worker is not ready")
            refused = await client.get("/readyz")
            assert refused.status_code == 503
            assert "the producer for publishing has failed for" in refused.json()["detail"]
            await wait_until(app.engine.faults.open, "the client is a fault")
            assert (await client.get("/healthz")).status_code == 503
        finally:
            go_on(node)
        await wait_until(lambda: not app.engine.faults.open(), "the client works again")
        await wait_until(app.engine.is_ready, "partitions are there")
        assert (await client.get("/readyz")).status_code == 200


# ---- the consumer of the group


async def test_a_worker_that_its_group_refused_joins_it_when_that_is_over(
    node: KafkaNode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_member, "WATCH_INTERVAL_S", 0.1)
    tally = Tally()
    settings = make_settings(f"kafka://{node.bootstrap}", tmp_path, partitions=1, session_timeout=6.0)
    app = create_app(settings, services=[tally.service])
    app.finalize()
    async with connected(settings, app.engine.topic_specs()):
        pass
    # A member that divides partitions in another way: the group takes nobody who does not do it in this way as well.
    stranger = AIOKafkaConsumer(tally.source.name, bootstrap_servers=node.bootstrap, group_id=settings.app_id)
    await stranger.start()
    try:
        await stranger.seek_to_end()
        await app.start()
        await wait_until(lambda: app.engine.clients()[-1].reason, "the group has refused the worker")
        assert "InconsistentGroupProtocol" in app.engine.clients()[-1].reason
    finally:
        await stranger.stop()
    try:
        await wait_until(app.engine.is_ready, "the worker is in the group")
        await publish(app, tally.source, "key", b"1")
        await caught_up(app)
        await tally.check(app, {"key": ["1"]})
    finally:
        await app.stop()


async def test_a_consumer_of_the_group_that_has_ended_is_replaced_and_nothing_counts_twice(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kafka_member, "WATCH_INTERVAL_S", 0.1)
    tally = Tally()
    async with running(settings, [tally.service]) as app:
        await publish(app, tally.source, "key", b"1")
        await caught_up(app)
        for number, part in enumerate(("_coordinator.need_rejoin", "_fetcher._get_actions_per_node"), start=1):
            owner, method = part.split(".")
            monkeypatch.setattr(getattr(_member(app), owner), method, _broken)
            await publish(app, tally.source, "key", b"%d" % (number + 1))
            _member(app)._coordinator.request_rejoin()
            await wait_until(lambda number=number: app.engine.clients()[-1].replaced == number, "it is replaced")  # type: ignore[misc]
            await wait_until(app.engine.is_ready, "the worker is in the group again")
            await caught_up(app)
        await tally.check(app, {"key": ["1", "2", "3"]})


def _member(app: EngineApp) -> AIOKafkaConsumer:
    consumer = app.consumer
    assert isinstance(consumer, KafkaConsumer)
    return consumer.client


def _broken(*_: object) -> object:
    raise RuntimeError("a mistake in the client")
