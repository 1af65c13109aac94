"""A running application sees the same of every transport: order, exactly once over crashes and restarts, positions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from engine.declare.service import Service
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Outgoing, Record
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    TRANSPORTS,
    Tally,
    broker_url,
    caught_up,
    crash,
    make_settings,
    publish,
    read_committed,
    running,
    start,
    unique,
    wait_until,
)

KEYS = [f"key-{number}" for number in range(5)]


class Crash(Exception):
    """The process ends here."""


@pytest.fixture(params=TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


def crash_at(step: str) -> Callable[[str], None]:
    def probe(reached: str) -> None:
        if reached == step:
            raise Crash(step)

    return probe


async def test_each_key_is_handled_in_order_and_once_and_sent_to_the_partition_of_its_key(settings: Settings) -> None:
    tally = Tally()
    expected = {key: [f"{key}.{number}" for number in range(60)] for key in KEYS}
    async with running(settings, [tally.service]) as app:
        for start_at in range(0, 60, 15):
            for key, values in expected.items():
                await publish(app, tally.source, key, *(value.encode() for value in values[start_at : start_at + 15]))
        await caught_up(app)
        await tally.check(app, expected)
        for number in range(settings.partitions):
            for record in await read_committed(app.engine.broker, tally.output.name, number):
                assert app.engine.partition_for(record.key or b"") == number


async def test_an_agent_gets_records_as_they_were_written(settings: Settings) -> None:
    topic, service, got = Topic(unique("raw"), "raw records"), Service("raw"), list[Record]()

    @service.agent("keep-raw", topic).on_record
    def keep(record: Record, work: UnitOfWork) -> str:
        got.append(record)
        return "raw"

    records: list[Outgoing] = [
        (b"key", b"value", (("a", b"1"), ("a", b""), ("caf\u00e9", b"\xff"))),
        (None, b"no key", ()),
        (b"no value", None, ()),
        (b"", b"", ()),
    ]
    async with running(settings, [service]) as app:
        positions = await app.engine.broker.publish(topic.name, 1, records)
        await caught_up(app)
    assert [(record.key, record.value, tuple(record.headers)) for record in got] == records
    assert [record.offset for record in got] == [position.offset for position in positions]


async def test_a_position_passes_everything_so_that_an_idle_topic_has_no_lag(settings: Settings) -> None:
    first = Tally("first")
    chain, seen = Service("chain"), list[bytes | None]()

    @chain.agent("follow", first.output).on_record
    def remember(record: Record, work: UnitOfWork) -> str:
        seen.append(record.value)
        return "seen"

    async with running(settings, [first.service, chain]) as app:
        for number in range(5):
            await publish(app, first.source, "key", f"{number}".encode())
            await caught_up(app)  # to the very end, although on Kafka that is a marker
        numbers = range(settings.partitions)
        ends = {number: await app.engine.broker.end_offset(first.output.name, number) for number in numbers}
        assert {number: app.engine.tasks[number].reached("follow", first.output.name) for number in numbers} == ends
    assert seen == [f"{number}".encode() for number in range(5)]


@pytest.mark.parametrize("settings", DURABLE_TRANSPORTS, indirect=True)
@pytest.mark.parametrize("step", ["after 3", "after 4", "after 5"])
async def test_after_a_crash_what_was_not_committed_comes_again_and_what_was_does_not(
    settings: Settings, step: str
) -> None:
    tally = Tally()
    expected = {key: ["a", "b", "c"] for key in KEYS}
    async with running(settings, [tally.service]) as app:
        for key in KEYS:
            await publish(app, tally.source, key, b"a", b"b", b"c")
        await caught_up(app)
        await tally.check(app, expected)

    doomed = await start(settings, [tally.service], probe=crash_at(step))
    await publish(doomed, tally.source, KEYS[0], b"d")
    await wait_until(lambda: doomed.engine.metrics.commit_failures, "a commit has failed")
    await crash(doomed)

    handled = list[bytes]()
    plain = tally.handle

    def count(record: Record, work: UnitOfWork) -> str:
        handled.append(record.key or b"")
        return plain(record, work)

    tally.handle = count  # type: ignore[method-assign]
    async with running(settings, [tally.service]) as app:
        await caught_up(app)
        await publish(app, tally.source, KEYS[0], b"e")
        await caught_up(app)
        await tally.check(app, expected | {KEYS[0]: ["a", "b", "c", "d", "e"]})
    # A commit that the broker took is not repeated, whatever happened to its worker after that.
    assert handled.count(KEYS[0].encode()) == (1 if step == "after 5" else 2)


@pytest.mark.parametrize("settings", DURABLE_TRANSPORTS, indirect=True)
async def test_a_restart_finds_state_and_positions(settings: Settings) -> None:
    tally = Tally()
    expected = {key: ["a", "b"] for key in KEYS}
    async with running(settings, [tally.service]) as app:
        for key in KEYS:
            await publish(app, tally.source, key, b"a", b"b")
        await caught_up(app)
        handled = app.engine.metrics.committed_records
        assert handled >= 2 * len(KEYS)
    async with running(settings, [tally.service]) as again:
        await caught_up(again)
        await tally.check(again, expected)
        assert again.engine.metrics.committed_records == 0
        await publish(again, tally.source, KEYS[0], b"c")
        await caught_up(again)
        await tally.check(again, expected | {KEYS[0]: ["a", "b", "c"]})
