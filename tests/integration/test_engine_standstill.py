"""No way to stand still for ever: what makes room is never behind what waits for room, and what stands still shows."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import replace

from agents import dead_letters as managing
from streams.app import OrdersApp
from streams.doctor import check_stalled
from streams.engine.standstill import without_room
from streams.envelope import Metadata, encode_envelope, new_envelope
from streams.events.dead_letters import RetryDeadLetter
from streams.topics import DEAD_LETTER_COMMANDS, Topic
from streams.transport.base import Outgoing
from tests.apps import (
    DURABLE_TRANSPORTS,
    TRANSPORTS,
    at_rest,
    broker_url,
    crash,
    make_settings,
    publish,
    running,
    start,
    wait_until,
)
from tests.integration.test_engine_outside import Asking, ask, keys_of
from tests.integration.web import own_broker_url
from tests.letters import closed_letters, discard, lanes, open_letters, retry


@pytest.fixture(params=TRANSPORTS)
def broker(request: pytest.FixtureRequest) -> str:
    return broker_url(request)


@pytest.fixture(params=DURABLE_TRANSPORTS)
def own_broker(request: pytest.FixtureRequest) -> str:
    """A log of the test's own: decisions that cannot be read would be letters of other tests, too."""
    return own_broker_url(request)


async def send_each(app: OrdersApp, topic: Topic, *keyed: tuple[str, str]) -> None:
    """Write records with a request for each, so that they come in several fetches."""
    for key, word in keyed:
        await publish(app, topic, key, ask(key, word).encode())


# ---- lanes of an agent that calls the outside


@pytest.mark.parametrize("decision", [discard, retry], ids=["discarded", "retried"])
async def test_a_full_lane_of_an_agent_that_calls_the_outside_goes_on_when_its_letter_is_decided(
    broker: str, tmp_path: Path, decision: object
) -> None:
    asking = Asking()
    outside, agent = asking.outside, asking.agent
    outside.refused = {"bad"}
    settings = make_settings(broker, tmp_path, retry_count=0, waiting_per_aggregate_max=5, outside_calls_max=4)
    async with running(settings, [asking.service, managing.service]) as app:
        number = app.engine.partition_for(b"k0")
        stuck, good = keys_of(app, number, 2)
        behind = [f"w{count}" for count in range(20)]
        await send_each(app, asking.source, (stuck, "bad"), *((stuck, word) for word in behind), (good, "a"))
        task, source = app.engine.task(number), (agent, asking.source.name)
        await wait_until(lambda: source in without_room(task) and open_letters(app), "the agent stands still")
        ((letter_id, letter),) = open_letters(app).items()
        assert (letter.agent, asking.answers(app, good)) == (agent, ())
        check = check_stalled(app.engine)
        assert not check.ok
        assert f"{asking.source.name} for {agent}" in check.detail
        outside.refused.clear()
        await (discard if decision is discard else retry)(app, letter_id)
        await at_rest(app)
        expected = [word.upper() for word in behind]
        assert asking.answers(app, stuck) == tuple(expected if decision is discard else ["BAD", *expected])
        assert asking.answers(app, good) == ("A",)
        assert (lanes(app), open_letters(app), without_room(task)) == ({}, {}, [])
        assert check_stalled(app.engine).ok


async def test_what_waits_in_a_lane_is_called_for_although_the_front_of_the_window_hangs(
    broker: str, tmp_path: Path
) -> None:
    asking = Asking()
    outside = asking.outside
    outside.refused = {"bad"}
    async with running(make_settings(broker, tmp_path, retry_count=0), [asking.service, managing.service]) as app:
        number = app.engine.partition_for(b"k0")
        waiting, slow = keys_of(app, number, 2)
        await send_each(app, asking.source, (waiting, "bad"), (waiting, "behind"))
        await at_rest(app)
        outside.held = {"slow"}
        await send_each(app, asking.source, (slow, "slow"))
        await wait_until(lambda: (slow, "slow") in outside.calls, "the call at the front hangs")
        outside.refused.clear()
        await retry(app, *open_letters(app))
        await wait_until(lambda: asking.answers(app, waiting) == ("BAD", "BEHIND"), "the lane has ended")
        assert asking.answers(app, slow) == ()
        outside.let_go("slow")
        await at_rest(app)
        assert asking.answers(app, slow) == ("SLOW",)


async def test_a_letter_that_is_tried_again_is_called_for_when_no_other_call_of_its_key_runs(
    broker: str, tmp_path: Path
) -> None:
    asking = Asking()
    outside = asking.outside
    async with running(make_settings(broker, tmp_path), [asking.service, managing.service]) as app:
        await publish(app, asking.source, "k", b"no json")  # a letter behind which nothing waits
        await at_rest(app)
        letters = {id: letter for id, letter in open_letters(app).items() if letter.agent == asking.agent}
        ((letter_id, _),) = letters.items()
        front, _ = keys_of(app, app.engine.partition_for(b"k"), 2)
        outside.held = {"slow", "slower"}
        await send_each(app, asking.source, (front, "slower"), ("k", "slow"))
        await wait_until(lambda: outside.open == 2, "both calls hang")
        await retry(app, letter_id, value=ask("k", "mended").replace("k-mended", "other"))
        await wait_until(lambda: lanes(app), "the letter waits for its turn")
        outside.let_go("slow")  # it is done, but cannot be handled before the one at the front
        await wait_until(lambda: asking.answers(app, "k") == ("MENDED",), "the letter's record is handled")
        assert outside.most_open == 2
        outside.let_go("slower")
        await at_rest(app)
        assert asking.answers(app, "k") == ("MENDED", "SLOW")
        assert asking.answers(app, front) == ("SLOWER",)


# ---- decisions


def unknown_version(letter_id: str) -> bytes:
    """A decision about a letter, in a version that this release does not know."""
    about: dict[str, Any] = {"event_id": str(uuid.uuid4()), "aggregate_id": letter_id, "timestamp": datetime.now(UTC)}
    known = encode_envelope(new_envelope(RetryDeadLetter(letter_id), metadata=Metadata(), **about))
    return known.replace(b'"version":1', b'"version":9')


async def decide_wrongly(app: OrdersApp, number: int, letter_id: str, count: int) -> None:
    """Write decisions that nobody can read, with a request for each."""
    for _ in range(count):
        record: Outgoing = letter_id.encode(), unknown_version(letter_id), ()
        await app.engine.broker.publish(DEAD_LETTER_COMMANDS.name, number, [record])


async def test_decisions_are_carried_out_although_others_about_the_same_letter_cannot_be_read(
    own_broker: str, tmp_path: Path
) -> None:
    asking = Asking()
    asking.outside.refused = {"bad"}
    settings = make_settings(own_broker, tmp_path, retry_count=0, waiting_per_aggregate_max=3)
    async with running(settings, [asking.service, managing.service]) as app:
        number = app.engine.partition_for(b"k")
        await send_each(app, asking.source, ("k", "bad"), ("k", "behind"))
        await at_rest(app)
        ((letter_id, _),) = open_letters(app).items()
        await decide_wrongly(app, number, letter_id, 9)
        await at_rest(app)
        unread = {id: letter for id, letter in open_letters(app).items() if id != letter_id}
        assert {(letter.topic, letter.lane) for letter in unread.values()} == {(DEAD_LETTER_COMMANDS.name, None)}
        assert len(unread) == 9
        assert without_room(app.engine.task(number)) == []
        asking.outside.refused.clear()
        await retry(app, letter_id)
        await discard(app, *unread)
        await at_rest(app)
        assert (open_letters(app), lanes(app)) == ({}, {})
        assert asking.answers(app, "k") == ("BAD", "BEHIND")


async def test_decisions_are_carried_out_although_there_is_no_room_for_any_record_to_wait(
    tmp_path: Path,
) -> None:
    asking = Asking()
    asking.outside.refused = {"bad"}
    async with running(
        make_settings("embedded://", tmp_path, retry_count=0, waiting_max=2), [asking.service, managing.service]
    ) as app:
        number = app.engine.partition_for(b"k")
        await send_each(app, asking.source, *(("k", word) for word in ("bad", "b", "c", "d")))
        task = app.engine.task(number)
        await wait_until(lambda: without_room(task) and open_letters(app), "all room is taken")
        ((letter_id, _),) = open_letters(app).items()
        await decide_wrongly(app, number, letter_id, 1)
        await wait_until(lambda: len(open_letters(app)) == 2, "what cannot be read is a letter")
        (unread,) = open_letters(app).keys() - {letter_id}
        await retry(app, unread)  # into a lane, although there is no room for more
        await discard(app, unread, letter_id)
        await at_rest(app)
        assert (open_letters(app), lanes(app), without_room(task)) == ({}, {}, [])
        assert asking.answers(app, "k") == ("B", "C", "D")


async def test_a_lane_of_decisions_that_an_earlier_release_has_parked_goes_on(own_broker: str, tmp_path: Path) -> None:
    asking = Asking()
    asking.outside.refused = {"bad"}
    settings = make_settings(own_broker, tmp_path, retry_count=0, waiting_per_aggregate_max=3)
    services = [asking.service, managing.service]
    app = await start(settings, services)
    number = app.engine.partition_for(b"k")
    await send_each(app, asking.source, ("k", "bad"))
    await at_rest(app)
    ((letter_id, _),) = open_letters(app).items()
    name = DEAD_LETTER_COMMANDS.name
    app.engine.topics = {**app.engine.topics, name: replace(DEAD_LETTER_COMMANDS, lanes=True)}  # as it was
    await decide_wrongly(app, number, letter_id, 1)
    await retry(app, letter_id)
    await discard(app, letter_id)
    await discard(app, letter_id)
    task = app.engine.task(number)
    await wait_until(lambda: without_room(task) and len(lanes(app)) == 2, "no decision is carried out any more")
    await crash(app)

    asking.outside.refused.clear()
    async with running(settings, services) as app:
        await at_rest(app)
        actions = [action.action for action in closed_letters(app)[letter_id].actions]
        assert (actions[0], "discard" in actions) == ("retry", True)  # in their order
        ((unread, letter),) = open_letters(app).items()
        assert (letter.topic, letter.lane, lanes(app)) == (name, None, {})
        await discard(app, unread)
        await at_rest(app)
        assert open_letters(app) == {}
