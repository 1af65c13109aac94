"""Decided transactions without markers, made on a real broker: readers see what was decided, once, and stores agree."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from aiokafka.client import AIOKafkaClient
from aiokafka.conn import CloseReason
from aiokafka.errors import KafkaConnectionError
from aiokafka.protocol.transaction import InitProducerIdRequest

from engine.faust.app import EngineApp
from engine.health.doctor import check_transactions
from engine.log.ports import TopicSpec, TransportError
from engine.positions.hanging import HangingWatch
from streams.app import create_app
from streams.settings import Settings
from tests.apps import (
    Seen,
    Tally,
    caught_up,
    connected,
    crash,
    make_settings,
    publish,
    row,
    running,
    start,
    unique,
    wait_until,
)
from tests.conftest import start_broker
from tests.hanging import UNVERIFIED, abort_as_the_tool_does, hang_as, hanging_in, lose_markers, state_of, take_over
from tests.kafka import Extras

KEY = "k"

pytestmark = pytest.mark.kafka


@pytest.fixture(scope="module")
def unverified_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Start a Kafka that takes records of transactions that their coordinator does not know."""
    with start_broker(tmp_path_factory.mktemp("unverified-kafka"), Extras(properties=UNVERIFIED)) as broker:
        yield f"kafka://{broker.bootstrap}"


@pytest.fixture
def settings(unverified_kafka: str, tmp_path: Path) -> Settings:
    return make_settings(unverified_kafka, tmp_path)


@pytest.fixture
async def beside(settings: Settings) -> AsyncIterator[tuple[str, int]]:
    """Give a partition that is all the coordinator hears of."""
    name = unique("beside")
    async with connected(settings, [TopicSpec(name, 1, False, None)]):
        yield name, 0


def number_of(app: EngineApp) -> int:
    return app.engine.partition_for(KEY.encode())


async def committed_without_markers(settings: Settings, tally: Tally, beside: tuple[str, int]) -> EngineApp:
    """Run an application whose second record is committed everywhere but in the log's markers; its store has it."""
    app = await start(settings, [tally.service])
    await publish(app, tally.source, KEY, b"a")
    await caught_up(app)
    number = number_of(app)
    lose_markers(app.engine, number, beside, commit=True, is_answered=True)
    await publish(app, tally.source, KEY, b"b")
    await wait_until(lambda: row(app, tally.table, KEY) == Seen(("a", "b")), "the second record is committed")
    assert {found.topic for found in await hanging_in(app.engine)} >= {
        tally.output.name,
        tally.table.changelog_topic(settings.app_id),
        "__consumer_offsets",
    }
    await crash(app)
    state = await state_of(settings, number)
    assert state.state == "CompleteCommit"
    return app


async def check_and_go_on(settings: Settings, tally: Tally, values: list[str]) -> None:
    """Start again: these values are there once, and the next one comes behind them."""
    async with running(settings, [tally.service]) as app:
        await caught_up(app)
        assert not await hanging_in(app.engine)
        await tally.check(app, {KEY: values})
        await publish(app, tally.source, KEY, b"z")
        await caught_up(app)
        await tally.check(app, {KEY: [*values, "z"]})


@pytest.mark.parametrize("keeps_store", [True, False])
async def test_a_committed_transaction_without_markers_is_committed_at_the_next_start(
    settings: Settings, beside: tuple[str, int], keeps_store: bool
) -> None:
    tally = Tally()
    await committed_without_markers(settings, tally, beside)
    if not keeps_store:
        shutil.rmtree(settings.data_dir)
    await check_and_go_on(settings, tally, ["a", "b"])


async def test_a_commit_that_was_forgotten_by_a_new_producer_is_taken_back_from_stores_and_done_again(
    settings: Settings, beside: tuple[str, int]
) -> None:
    tally = Tally()
    app = await committed_without_markers(settings, tally, beside)
    await take_over(settings, number_of(app), 10_000)
    await check_and_go_on(settings, tally, ["a", "b"])


async def test_a_start_that_died_while_it_committed_what_hangs_is_gone_on_with(
    settings: Settings, beside: tuple[str, int], caplog: pytest.LogCaptureFixture
) -> None:
    tally = Tally()
    app = await committed_without_markers(settings, tally, beside)
    await take_over(settings, number_of(app), 9_999)
    assert (await state_of(settings, number_of(app))).state == "Empty"
    await check_and_go_on(settings, tally, ["a", "b"])
    assert "committed now" in caplog.text
    assert "restored from the beginning" not in caplog.text


@pytest.mark.parametrize("commit", [True, False])
async def test_a_running_worker_settles_a_transaction_whose_end_it_was_never_told(
    settings: Settings, beside: tuple[str, int], commit: bool, caplog: pytest.LogCaptureFixture
) -> None:
    tally = Tally()
    async with running(settings, [tally.service]) as app:
        await publish(app, tally.source, KEY, b"a")
        await caught_up(app)
        lose_markers(app.engine, number_of(app), beside, commit=commit, is_answered=False)
        await publish(app, tally.source, KEY, b"b")
        await wait_until(lambda: app.engine.metrics.partition_failures == 1, "the task has ended")
        await wait_until(app.engine.is_ready, "the task is back")
        await caught_up(app)
        assert not await hanging_in(app.engine)
        await tally.check(app, {KEY: ["a", "b"]})
    assert ("committed now" if commit else "aborted now") in caplog.text
    assert "restored from the beginning" not in caplog.text


async def test_a_writer_does_not_start_when_the_coordinator_was_away_meanwhile(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    send, times = AIOKafkaClient.send, list[int]()

    async def hang_up_once(client: AIOKafkaClient, node: int, request: object, **options: object) -> object:
        answer = await send(client, node, request, **options)
        if isinstance(request, InitProducerIdRequest) and not times:
            times.append(node)
            for connection in list(client._conns.values()):
                connection.close(reason=CloseReason.CONNECTION_BROKEN)
            raise KafkaConnectionError("hung up")
        return answer

    async with connected(settings) as broker:
        monkeypatch.setattr(AIOKafkaClient, "send", hang_up_once)
        producer = broker.producer(0)
        with pytest.raises(TransportError, match="coordinator was away"):
            await producer.start()
        await producer.close()
        assert times
        successor = broker.producer(0)
        await successor.start()
        await successor.close()


async def test_a_transaction_of_an_unknown_producer_in_a_changelog_keeps_its_partition_back_until_it_is_aborted(
    settings: Settings, beside: tuple[str, int]
) -> None:
    tally = Tally()
    async with running(settings, [tally.service]) as app:
        await publish(app, tally.source, KEY, b"a")
        await caught_up(app)
    number, changelog = number_of(app), tally.table.changelog_topic(settings.app_id)
    await hang_as(settings, unique("gone"), beside, changelog, number, (KEY.encode(), b'{"values":["never"]}', ()))
    app = create_app(settings, services=[tally.service])
    app.finalize()
    await app.start()
    try:
        await wait_until(app.engine.faults.open, "the fault is open")
        (fault,) = app.engine.faults.open()
        assert fault.detail.startswith(f"a transaction hangs in {changelog}/{number} (producer id ")
        assert f"abort --topic {changelog} --partition {number} --start-offset " in fault.advice
        assert number not in {n for n, task in app.engine.tasks.items() if task.life.is_running()}
        (found,) = [one for one in await hanging_in(app.engine) if one.topic == changelog]
        await abort_as_the_tool_does(settings, found)
        await wait_until(app.engine.is_ready, "the partition has started")
        assert not app.engine.faults.open()
        await publish(app, tally.source, KEY, b"b")
        await caught_up(app)
        await tally.check(app, {KEY: ["a", "b"]})
    finally:
        await app.stop()


async def test_a_transaction_that_holds_readers_up_is_found_while_the_worker_runs_and_by_the_doctor(
    settings: Settings, beside: tuple[str, int]
) -> None:
    tally = Tally()
    async with running(settings, [tally.service]) as app:
        engine, watch = app.engine, HangingWatch(app.engine)
        number = number_of(app)
        await hang_as(settings, unique("gone"), beside, tally.source.name, number, (KEY.encode(), b"never", ()))
        await watch.look(0.0)
        (fault,) = engine.faults.open()
        assert fault.detail.startswith(f"a transaction hangs in {tally.source.name}/{number} (producer id ")
        impatient = settings.model_copy(update={"transaction_timeout": -60.0})
        (check,) = await check_transactions(impatient, engine.broker, engine.topic_specs())
        assert (check.ok, check.detail) == (False, fault.detail)
        assert (await check_transactions(settings, engine.broker, engine.topic_specs()))[0].ok
        (found,) = [one for one in await hanging_in(engine) if one.topic == tally.source.name]
        await abort_as_the_tool_does(settings, found)
        await watch.look(0.0)
        assert not engine.faults.open()


async def test_a_running_worker_ends_the_task_whose_own_transaction_hangs_and_settles_it(
    settings: Settings, beside: tuple[str, int]
) -> None:
    tally = Tally()
    async with running(settings, [tally.service]) as app:
        lose_markers(app.engine, number_of(app), beside, commit=True, is_answered=True)
        await publish(app, tally.source, KEY, b"a")
        await wait_until(lambda: row(app, tally.table, KEY) == Seen(("a",)), "the record is committed")
        watch = HangingWatch(app.engine)
        await watch.look(5.0)
        assert app.engine.metrics.partition_failures == 0
        await watch.look(0.0)
        assert not app.engine.faults.open()
        await wait_until(lambda: app.engine.metrics.partition_failures == 1, "the task has ended")
        await wait_until(app.engine.is_ready, "the task is back")
        await caught_up(app)
        assert not await hanging_in(app.engine)
        await tally.check(app, {KEY: ["a"]})
