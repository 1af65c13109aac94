"""A topic has less than its agents remember: they stand still there, it is named, and a person lets them go on."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from pathlib import Path

import pytest

from engine.declare.service import Service
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.app import EngineApp
from engine.log.embedded.broker import EmbeddedBroker
from engine.log.partitioner import partition_for
from engine.log.ports import Record
from engine.positions.acceptance import accept_losses
from engine.positions.positions import ACCEPTED_LOSSES, POSITIONS, position_key
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    KAFKA,
    broker_url,
    caught_up,
    connected,
    make_settings,
    publish,
    running,
    unique,
    wait_until,
)
from tests.lost_records import add_partitions, delete_topic, remove_before, until_gone

KEY = "key"
READER, OTHER = "reader", "other"


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


class Two:
    """Two agents, each with a topic of its own, that note what they are given."""

    def __init__(self) -> None:
        self.topic = Topic(unique("read"), "what the reader reads")
        self.elsewhere = Topic(unique("elsewhere"), "what the other one reads")
        self.got: dict[str, list[str]] = {READER: [], OTHER: []}
        self.service = Service("two")
        self.service.agent(READER, self.topic).on_record(self.note_for(READER))
        self.service.agent(OTHER, self.elsewhere).on_record(self.note_for(OTHER))

    def note_for(self, name: str):  # type: ignore[no-untyped-def]
        def note(record: Record, work: UnitOfWork) -> str:
            self.got[name].append((record.value or b"").decode())
            return "noted"

        return note

    def with_late_agent(self) -> Two:
        """The same with a second agent on the topic of the reader."""
        self.got["late"] = []
        self.service.agent("late", self.topic).on_record(self.note_for("late"))
        return self


def numbers(first: int, end: int) -> list[bytes]:
    return [b"%d" % number for number in range(first, end)]


def texts(first: int, end: int) -> list[str]:
    return [f"{number}" for number in range(first, end)]


def number_of_key(settings: Settings) -> int:
    return partition_for(KEY.encode(), settings.partitions)


def partition(app: EngineApp) -> int:
    return partition_for(KEY.encode(), app.engine.settings.partitions)


def details(app: EngineApp) -> Sequence[str]:
    return [fault.detail for fault in app.engine.faults.open()]


def stored_id(app: EngineApp, agent: str, topic: Topic) -> str:
    row = app.engine.task(partition(app)).read(POSITIONS, position_key(agent, topic.name))
    assert row is not None
    return row.topic_id


async def read_three(settings: Settings, two: Two) -> None:
    """Let the reader read three records, and end the application."""
    async with running(settings, [two.service]) as app:
        await publish(app, two.topic, KEY, *numbers(0, 3))
        await caught_up(app)


async def check_that_others_go_on(app: EngineApp, two: Two) -> None:
    await publish(app, two.elsewhere, KEY, b"on")
    await wait_until(lambda: two.got[OTHER][-1:] == ["on"], "the other agent goes on")


async def test_records_removed_while_no_worker_was_there_are_named_and_left_out_only_when_a_person_says_so(
    settings: Settings,
) -> None:
    two = Two()
    await read_three(settings, two)
    number = number_of_key(settings)
    async with connected(settings) as broker:
        await broker.publish(two.topic.name, number, [(KEY.encode(), value, ()) for value in numbers(3, 9)])
        await remove_before(broker, two.topic.name, number, 7)

    place = f"{two.topic.name}/{number}"
    for _ in range(2):  # and a restart changes nothing
        async with running(settings, [two.service]) as app:
            assert details(app) == [f"{place}: 4 records, offsets 3 to 6, were removed before reader had read them"]
            assert [loss.records for loss in app.engine.task(number).losses.all()] == [4]
            await check_that_others_go_on(app, two)
            assert two.got[READER] == texts(0, 3)

    async with running(settings, [two.service]) as app:
        (accepted,) = await accept_losses(app.engine, two.topic.name, number, "ann", "they are in the shop's books")
        assert details(app) == []
        await wait_until(lambda: two.got[READER] == [*texts(0, 3), *texts(7, 9)], "the reader has gone on")
        (row,) = [row for _, row in app.engine.task(number).scan(ACCEPTED_LOSSES)]
        assert row == accepted
        assert (row.by, row.reason, row.loss.first, row.loss.end) == ("ann", "they are in the shop's books", 3, 7)
        assert await accept_losses(app.engine, two.topic.name, number, "ann", "again") == []
    async with running(settings, [two.service]) as app:
        assert details(app) == []
    assert two.got[READER] == [*texts(0, 3), *texts(7, 9)]


async def test_records_removed_in_front_of_a_running_reader_are_named_and_none_is_read_behind_them(
    settings: Settings,
) -> None:
    two = Two()
    async with running(settings, [two.service]) as app:
        number = partition(app)
        await publish(app, two.topic, KEY, *numbers(0, 3))
        await caught_up(app)
        task = app.engine.task(number)
        task.backlog.hold(two.topic.name)
        task.backlog.hold(two.topic.name)  # nothing more is taken
        for value in numbers(3, 9):
            await publish(app, two.topic, KEY, value)
        await remove_before(app.engine.broker, two.topic.name, number, 8)
        task.backlog.let_go(two.topic.name, 2)
        await wait_until(lambda: details(app), "the loss is named")
        await wait_until(lambda: not task.losses._looking, "the look is over")
        (loss,) = task.losses.all()
        assert (loss.agent, loss.end, loss.goes_on_at) == (READER, 8, 8)
        assert two.got[READER] == texts(0, loss.first)  # what was fetched before is handled
        await check_that_others_go_on(app, two)
        assert two.got[READER] == texts(0, loss.first)
        await accept_losses(app.engine, two.topic.name, number, "ann", "a test")
        await publish(app, two.topic, KEY, b"9")
        await wait_until(lambda: two.got[READER] == [*texts(0, loss.first), "8", "9"], "the reader has gone on")


async def test_records_removed_before_an_agent_read_its_first_one_are_missed(settings: Settings) -> None:
    two = Two()
    async with running(settings, [two.service]) as app:
        number = partition(app)
    async with connected(settings) as broker:
        await broker.publish(two.topic.name, number, [(KEY.encode(), value, ()) for value in numbers(0, 5)])
        await remove_before(broker, two.topic.name, number, 5)
    async with running(settings, [two.service]) as app:
        place = f"{two.topic.name}/{number}"
        assert details(app) == [f"{place}: 5 records, offsets 0 to 4, were removed before reader had read them"]


async def test_a_new_agent_takes_a_topic_from_the_earliest_record_there_is_and_misses_nothing(
    settings: Settings,
) -> None:
    two = Two()
    await read_three(settings, two)
    async with connected(settings) as broker:
        await remove_before(broker, two.topic.name, number_of_key(settings), 2)
    late = two.with_late_agent()
    async with running(settings, [late.service]) as app:
        await caught_up(app)
        assert details(app) == []
    assert late.got["late"] == ["2"]
    assert two.got[READER] == texts(0, 3)


async def test_a_topic_that_was_made_anew_is_noticed_and_read_from_its_beginning_when_that_is_accepted(
    settings: Settings,
) -> None:
    two = Two()
    await read_three(settings, two)
    async with connected(settings) as broker:
        await delete_topic(broker, two.topic.name)
        await until_gone(broker, two.topic.name)
    async with running(settings, [two.service]) as app:
        # More than before: the old position lies within the new topic.
        await publish(app, two.topic, KEY, *numbers(10, 20))
        number = partition(app)
        assert f"{two.topic.name}/{number}: the topic was deleted and made anew" in " ".join(details(app))
        await check_that_others_go_on(app, two)
        assert two.got[READER] == texts(0, 3)
        await accept_losses(app.engine, two.topic.name, number, "ann", "a test")
        await wait_until(lambda: two.got[READER] == [*texts(0, 3), *texts(10, 20)], "the new topic is read")


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_a_topic_made_anew_under_a_running_worker_is_noticed(settings: Settings) -> None:
    two = Two()
    async with running(settings, [two.service]) as app:
        await publish(app, two.topic, KEY, *numbers(0, 3))
        await caught_up(app)
        broker, number = app.engine.broker, partition(app)
        await delete_topic(broker, two.topic.name)
        await until_gone(broker, two.topic.name)
        await broker.create_topics(app.engine.topic_specs())
        await broker.publish(two.topic.name, number, [(KEY.encode(), value, ()) for value in numbers(10, 14)])
        app.engine.source_watch.soon()
        anew = f"{two.topic.name}/{number}: the topic was deleted and made anew"
        await wait_until(lambda: anew in " ".join(details(app)), "the new topic is noticed")
        await check_that_others_go_on(app, two)
        assert two.got[READER][:3] == texts(0, 3)


async def test_rows_of_a_release_without_topic_ids_are_taken_over_where_they_fit_and_missed_where_they_do_not(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    two = Two()
    await read_without_ids(settings, two, monkeypatch)
    async with running(settings, [two.service]) as app:
        assert details(app) == []
        assert (
            stored_id(app, READER, two.topic) == (await app.engine.broker.topic_ids([two.topic.name]))[two.topic.name]
        )
        await publish(app, two.topic, KEY, b"3")
        await caught_up(app)
    assert two.got[READER] == texts(0, 4)

    two = Two()
    await read_without_ids(settings, two, monkeypatch)
    async with connected(settings) as broker:
        await delete_topic(broker, two.topic.name)
        await until_gone(broker, two.topic.name)
    async with running(settings, [two.service]) as app:
        place = f"{two.topic.name}/{partition(app)}"
        cut_off = (
            f"{place}: 3 records, offsets 0 to 2, were cut off after reader had read them: the partition ended at 0"
        )
        assert [detail.startswith(cut_off) for detail in details(app)] == [True]
        await publish(app, two.topic, KEY, *numbers(10, 16))
    async with running(settings, [two.service]) as app:  # the partition has grown past the position
        assert [detail.startswith(cut_off) for detail in details(app)] == [True]
        await accept_losses(app.engine, two.topic.name, partition(app), "ann", "a test")
        await wait_until(lambda: two.got[READER] == [*texts(0, 3), *texts(10, 16)], "the new records are read")


async def read_without_ids(settings: Settings, two: Two, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the reader read three records with a broker that tells no ids."""

    async def no_ids(broker: object, names: Sequence[str]) -> dict[str, str]:
        return dict.fromkeys(names, "")

    with monkeypatch.context() as without:
        for kind in ("embedded.broker.EmbeddedBroker", "kafka.broker.KafkaBroker"):
            without.setattr(f"engine.log.{kind}.topic_ids", no_ids)
        await read_three(settings, two)


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_positions_that_passed_markers_alone_are_kept_so_that_markers_are_not_missed(settings: Settings) -> None:
    two = Two()
    async with running(settings, [two.service]) as app:
        number = partition(app)
        producer = app.engine.broker.producer(settings.partitions)  # a number that no task has
        for _ in range(2):
            await producer.start()
            await producer.begin()
            await producer.send({(two.topic.name, number): [(KEY.encode(), b"taken back", ())]})
            await producer.flush()
            await producer.close()
        await producer.start()  # ends the last one
        await producer.close()
        end = await app.engine.broker.end_offset(two.topic.name, number)
        await wait_until(lambda: app.engine.task(number).reached(READER, two.topic.name) == end, "markers are passed")
    async with connected(settings) as broker:
        await remove_before(broker, two.topic.name, number, end)
    async with running(settings, [two.service]) as app:
        assert details(app) == []
        assert two.got[READER] == []


@pytest.mark.parametrize("settings", [KAFKA], indirect=True)
async def test_partitions_added_to_a_topic_are_reported_with_what_nobody_reads_and_a_worker_starts_all_the_same(
    settings: Settings,
) -> None:
    two = Two()
    async with running(settings, [two.service]) as app:
        broker = app.engine.broker
        await add_partitions(broker, two.topic.name, settings.partitions + 2)
        async with connected(settings) as other:
            await other.publish(two.topic.name, settings.partitions, [(b"k", b"unread", ())])
        app.engine.source_watch.soon()
        expected = (
            f"{two.topic.name} has {settings.partitions + 2} partitions, this application uses the first "
            f"{settings.partitions}: 1 offsets in the others are read by no agent"
        )
        await wait_until(lambda: expected in details(app), "the added partitions are reported")
        await publish(app, two.topic, KEY, b"read")
        await wait_until(lambda: two.got[READER] == ["read"], "the reader goes on")
    async with running(settings, [two.service]) as app:
        await wait_until(lambda: expected in details(app), "the added partitions are reported again")
        await publish(app, two.topic, KEY, b"and again")
        await wait_until(lambda: two.got[READER] == ["read", "and again"], "the reader goes on")


@pytest.mark.parametrize("settings", ["embedded"], indirect=True)
async def test_the_embedded_log_keeps_what_no_agent_has_passed_however_old_it_is(settings: Settings) -> None:
    two = Two()
    two.topic = Topic(two.topic.name, two.topic.help, retention_ms=1)
    two.service.agents[READER].topic = two.topic
    async with running(settings, [two.service]) as app:
        number, broker = partition(app), app.engine.broker
        assert isinstance(broker, EmbeddedBroker)
        await publish(app, two.topic, KEY, *numbers(0, 3))
        await caught_up(app)
    async with connected(settings, app.engine.topic_specs()) as broker:
        assert isinstance(broker, EmbeddedBroker)
        await broker.publish(two.topic.name, number, [(KEY.encode(), value, ()) for value in numbers(3, 6)])
        beside = (number + 1) % settings.partitions
        await broker.publish(two.topic.name, beside, [(b"unread", b"unread", ())])
        await asyncio.sleep(0.01)
        deque(broker.maintenance(), maxlen=0)
        assert await broker.bounds([(two.topic.name, number), (two.topic.name, beside)]) == {
            (two.topic.name, number): (3, 6),
            (two.topic.name, beside): (0, 1),
        }
    async with running(settings, [two.service]) as app:
        await caught_up(app)
    assert sorted(two.got[READER]) == [*texts(0, 6), "unread"]
