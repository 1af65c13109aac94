"""Each agent has a position of its own in each partition; the group's offset is the smallest of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.declare.service import Service
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.log.ports import Outgoing, Record
from streams.settings import Settings
from tests.apps import (
    DURABLE_TRANSPORTS,
    broker_url,
    caught_up,
    hand_fed,
    make_settings,
    process,
    publish,
    running,
    unique,
)

KEY = "key"


@pytest.fixture(params=DURABLE_TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


class Listeners:
    """A service whose agents note what they are given, on one topic."""

    def __init__(self, topic: Topic, *names: str) -> None:
        self.service = Service("listeners")
        self.topic = topic
        self.got: dict[str, list[str]] = {name: [] for name in names}
        for name in names:
            self.service.agent(name, topic).on_record(self.note_for(name))

    def note_for(self, name: str):  # type: ignore[no-untyped-def]
        def note(record: Record, work: UnitOfWork) -> str:
            self.got[name].append((record.value or b"").decode())
            return "noted"

        return note


def values(*numbers: int) -> list[bytes]:
    return [b"%d" % number for number in numbers]


def texts(*numbers: int) -> list[str]:
    return [f"{number}" for number in numbers]


def keyed(*numbers: int) -> list[Outgoing]:
    return [(KEY.encode(), value, ()) for value in values(*numbers)]


async def test_a_new_agent_starts_from_the_earliest_record_and_the_old_one_goes_on(settings: Settings) -> None:
    topic = Topic(unique("heard"), "what agents listen to")
    before = Listeners(topic, "old")
    async with running(settings, [before.service]) as app:
        await publish(app, topic, KEY, *values(1, 2, 3))
        await caught_up(app)
    assert before.got == {"old": texts(1, 2, 3)}

    after = Listeners(topic, "old", "new")
    async with running(settings, [after.service]) as app:
        await publish(app, topic, KEY, *values(4, 5))
        await caught_up(app)
        assert after.got == {"old": texts(4, 5), "new": texts(1, 2, 3, 4, 5)}
        number = app.engine.partition_for(KEY.encode())
        assert await app.engine.broker.committed([(topic.name, number)]) == {(topic.name, number): 5}

    again = Listeners(topic, "old", "new")
    async with running(settings, [again.service]) as app:
        await publish(app, topic, KEY, *values(6))
        await caught_up(app)
    assert again.got == {"old": texts(6), "new": texts(6)}


async def test_agents_at_different_positions_go_on_from_their_own_and_the_group_has_the_smallest(
    settings: Settings,
) -> None:
    topic = Topic(unique("heard"), "what agents listen to")
    listeners = Listeners(topic, "fast", "slow")
    got = listeners.got
    async with hand_fed(settings, [listeners.service]) as fed:
        records = await fed.write(topic, 0, keyed(*range(6)))
        first = fed.fetch(0, topic, records[:2])
        for name in ("fast", "slow"):
            await process(first, name, listeners.note_for(name))
        await process(fed.fetch(0, topic, records[2:]), "fast", listeners.note_for("fast"))
        await fed.engine.revoked()
        task = fed.engine.tasks[0]
        assert (task.reached("fast", topic.name), task.reached("slow", topic.name)) == (6, 2)
        assert await fed.engine.broker.committed([(topic.name, 0)]) == {(topic.name, 0): 2}
    assert got == {"fast": texts(*range(6)), "slow": texts(0, 1)}

    async with hand_fed(settings, [listeners.service]) as fed:
        assert fed.hand.positions[topic.name, 0] == 2
        again = fed.fetch(0, topic, records[2:])
        assert list(fed.engine.tasks[0].intake.unhandled(again, "fast")) == []
        assert [record.offset for record in fed.engine.tasks[0].intake.unhandled(again, "slow")] == [2, 3, 4, 5]
        for name in ("fast", "slow"):
            await process(again, name, listeners.note_for(name))
        await fed.engine.revoked()
        assert await fed.engine.broker.committed([(topic.name, 0)]) == {(topic.name, 0): 6}
    assert got == {"fast": texts(*range(6)), "slow": texts(*range(6))}


async def test_an_agent_of_one_topic_is_not_held_up_by_that_of_another(settings: Settings) -> None:
    quick, stuck = Topic(unique("quick"), "quick"), Topic(unique("stuck"), "stuck")
    listeners, waiting = Listeners(quick, "quick"), Listeners(stuck, "stuck")
    async with hand_fed(settings, [listeners.service, waiting.service]) as fed:
        task = fed.engine.tasks[0]
        held = await fed.write(stuck, 0, keyed(1))
        fed.fetch(0, stuck, held)  # its agent never gets round to it
        records = await fed.write(quick, 0, keyed(1, 2))
        await process(fed.fetch(0, quick, records), "quick", listeners.note_for("quick"))
        await fed.engine.revoked()
        assert (task.reached("quick", quick.name), task.reached("stuck", stuck.name)) == (2, 0)
