"""A broker that is away, at start or later: everything counts once when it is back; and what no waiting solves."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaConsumer
from aiokafka.errors import KafkaConnectionError

from engine.faust.app import EngineApp
from engine.log.ports import TopicSpec, TransportError
from streams.app import create_app
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    Tally,
    broker_url,
    caught_up,
    connected,
    make_settings,
    publish,
    read_topic,
    running,
    stop_cut_off,
    unique,
    wait_until,
)
from tests.kafka import KafkaBroker

KEYS = [f"key-{number}" for number in range(4)]
OUTAGE_DEADLINE_S = 60.0


@pytest.fixture
def stopped_broker(own_kafka: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaBroker]:
    """A Kafka of this test's own, not started yet."""
    broker = KafkaBroker(tmp_path_factory.mktemp("stopped-kafka"))
    yield broker
    broker.stop()


async def test_a_worker_waits_for_a_broker_that_is_away_at_its_start_and_gets_over_its_loss(
    stopped_broker: KafkaBroker, tmp_path: Path
) -> None:
    tally = Tally()
    settings = make_settings(f"kafka://{stopped_broker.bootstrap}", tmp_path, partitions=2)
    app = create_app(settings, services=[tally.service])
    app.finalize()
    starting = asyncio.create_task(app.start())
    try:
        await asyncio.sleep(0.3)
        assert not starting.done()
        await asyncio.to_thread(stopped_broker.start)
        await starting
        await wait_until(app.engine.is_ready, "the broker has come", OUTAGE_DEADLINE_S)
        written = 0
        for kill in (False, True):
            written = await _write(app, tally, written)  # and at once, while these are being committed:
            await _lose_and_find(stopped_broker, app, kill)
            written = await _write(app, tally, written)
            await _everything_counts_once(app, tally, written)
        assert app.engine.fatal is None
    finally:
        await stop_cut_off(app)


async def _write(app: EngineApp, tally: Tally, written: int) -> int:
    for key in KEYS:
        await _until_taken(app, tally, key, f"{written}")
    return written + 1


async def _until_taken(app: EngineApp, tally: Tally, key: str, value: str) -> None:
    """Write a record as a patient client does; one that was refused may have been written nevertheless."""
    deadline = asyncio.get_running_loop().time() + OUTAGE_DEADLINE_S
    while True:
        try:
            await publish(app, tally.source, key, value.encode())
            return
        except TransportError:
            assert asyncio.get_running_loop().time() < deadline, "the broker does not take records"
            await asyncio.sleep(0.1)


async def _lose_and_find(broker: KafkaBroker, app: EngineApp, kill: bool) -> None:
    """Take the broker away for a while, in order or by force, and bring it back.

    While one that was killed is away, what is committed can be read: no partition starts anew before a broker answers.
    """
    await asyncio.to_thread(broker.kill if kill else broker.stop)
    await asyncio.sleep(0.5)
    assert app.engine.is_ready() or not kill
    await asyncio.to_thread(broker.start)


async def _everything_counts_once(app: EngineApp, tally: Tally, written: int) -> None:
    """Check that every record of the log counts once, and that all that was written is there."""
    engine = app.engine
    ends = {n: await engine.broker.end_offset(tally.source.name, n) for n in range(engine.settings.partitions)}
    await wait_until(
        lambda: (
            engine.is_ready()
            and all(engine.tasks[n].reached(Tally.AGENT, tally.source.name) >= end for n, end in ends.items())
        ),
        "everything is handled after the outage",
        OUTAGE_DEADLINE_S,
    )
    expected: dict[str, list[str]] = {key: [] for key in KEYS}
    for record in await read_topic(app, tally.source):
        expected[(record.key or b"").decode()].append((record.value or b"").decode())
    for values in expected.values():
        assert list(dict.fromkeys(values)) == [f"{number}" for number in range(written)]
    await tally.check(app, expected)


# ---- what waiting does not solve


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path, app_id=unique("sizes"))


async def test_a_topic_with_another_number_of_partitions_ends_the_worker_with_what_to_do(settings: Settings) -> None:
    tally, told = Tally(), list[str | None]()
    wrong = settings.partitions - 1  # with more, and other topics of the right size, a worker starts and says so
    async with connected(settings, [TopicSpec(tally.source.name, wrong, False, None)]):
        pass
    app = create_app(settings, services=[tally.service])
    app.engine.on_fatal = lambda: told.append(app.engine.fatal)
    app.finalize()
    try:
        with pytest.raises(TransportError, match=tally.source.name):
            await app.start()
    finally:
        await app.stop()
        await app.engine.broker.stop()
    assert told == [app.engine.fatal]
    assert app.engine.fatal is not None
    assert f"{wrong} partitions" in app.engine.fatal
    # The first when all topics there are have that size, the second when only some have.
    advice = ("ORDERS_PARTITIONS", "Changing the number of partitions", "data folder")
    assert any(text in app.engine.fatal for text in advice)


async def test_a_data_folder_that_another_worker_holds_ends_the_worker_with_what_to_do(tmp_path: Path) -> None:
    tally = Tally()
    settings = make_settings("embedded://", tmp_path)
    async with running(settings, [tally.service]):
        second = create_app(make_settings("embedded://", tmp_path), services=[Tally().service])
        second.finalize()
        with pytest.raises(TransportError, match="data folder"):
            await second.start()
        await second.stop()
        assert second.engine.fatal is not None


async def test_a_broker_that_goes_away_again_while_a_worker_starts_is_waited_for(
    kafka_broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was there when the topics were made, and is not when the consumer connects."""
    tally, refusals = Tally(), 2
    start = AIOKafkaConsumer.start

    async def refuse_first(client: AIOKafkaConsumer) -> None:
        nonlocal refusals
        if refusals:
            refusals -= 1
            raise KafkaConnectionError("Unable to bootstrap")
        await start(client)

    monkeypatch.setattr(AIOKafkaConsumer, "start", refuse_first)
    async with running(make_settings(f"kafka://{kafka_broker.bootstrap}", tmp_path), [tally.service]) as app:
        assert refusals == 0
        await publish(app, tally.source, "k", b"a")
        await caught_up(app)
        await tally.check(app, {"k": ["a"]})
