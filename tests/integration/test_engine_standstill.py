"""No way to stand still for ever: what makes room is never behind what waits for room, and what stands still shows."""

from __future__ import annotations

import asyncio
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest
from msgspec.structs import replace
from prometheus_client.parser import text_string_to_metric_families

from engine.calls.circuit import OUTCOMES_MIN
from engine.declare.envelope import Metadata, encode_envelope, new_envelope
from engine.declare.handlers import RecordHandler
from engine.declare.topic import Topic
from engine.failures import service as managing
from engine.failures.decisions import RetryDeadLetter
from engine.failures.topics import DEAD_LETTER_COMMANDS
from engine.faust.app import EngineApp
from engine.health.doctor import check_faults, check_stalled
from engine.health.faults import Fault
from engine.health.standstill import StandstillWatch, without_room
from engine.log.ports import Outgoing
from engine.partition.dispatch import Dispatch
from engine.web.routes import health
from engine.work.fetched import Fetched
from tests.apps import (
    DURABLE_TRANSPORTS,
    TRANSPORTS,
    Tally,
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
from tests.integration.web import client_of, own_broker_url
from tests.letters import closed_letters, discard, lanes, open_letters, retry


@pytest.fixture(params=TRANSPORTS)
def broker(request: pytest.FixtureRequest) -> str:
    return broker_url(request)


@pytest.fixture(params=DURABLE_TRANSPORTS)
def own_broker(request: pytest.FixtureRequest) -> str:
    """A log of the test's own: decisions that cannot be read would be letters of other tests, too."""
    return own_broker_url(request)


async def send_each(app: EngineApp, topic: Topic, *keyed: tuple[str, str]) -> None:
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


# ---- what stands still shows


def standstills(app: EngineApp) -> list[Fault]:
    return [fault for fault in app.engine.faults.open() if fault.kind == "standstill"]


async def test_an_agent_without_room_is_a_fault_that_names_the_letter_until_it_is_decided(
    broker: str, tmp_path: Path
) -> None:
    asking = Asking()
    asking.outside.refused = {"bad"}
    settings = make_settings(broker, tmp_path, retry_count=0, waiting_per_aggregate_max=2, stalled_after=0.2)
    async with running(settings, [asking.service, managing.service, health.service]) as app, client_of(app) as client:
        await send_each(app, asking.source, ("k", "bad"), ("k", "b"), ("k", "c"))
        # Whatever else takes longer than 0.2 s is no fault any more when it is done.
        await wait_until(
            lambda: [asking.agent in fault.detail for fault in standstills(app)] == [True], "one stands still"
        )
        (fault,) = standstills(app)
        ((letter_id, _),) = open_letters(app).items()
        number = app.engine.partition_for(b"k")
        assert fault.detail.startswith(f"{asking.source.name}/{number} stands still for {asking.agent} since ")
        assert letter_id in fault.detail
        assert (fault.partition, "discard" in fault.advice) == (number, True)
        assert [check.ok for check in check_faults(app.engine)] == [False]
        assert (await client.get("/healthz")).status_code == 503
        assert (await stalled_seconds(client))[asking.agent, asking.source.name, str(number)] >= 0.2
        await discard(app, letter_id)
        await at_rest(app)
        await wait_until(lambda: not standstills(app), "the fault is over")
        assert set((await stalled_seconds(client)).values()) == {0.0}
        assert (await client.get("/healthz")).status_code == 200


async def stalled_seconds(client: httpx.AsyncClient) -> dict[tuple[str, ...], float]:
    """Seconds of `stalled_seconds` by agent, topic and partition."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    (family,) = [family for family in families if family.name == "stalled_seconds"]
    labels = ("agent", "topic", "partition")
    return {tuple(sample.labels[name] for name in labels): sample.value for sample in family.samples}


async def test_a_call_that_fails_again_and_again_among_others_is_a_fault_but_not_one_that_is_paused(
    tmp_path: Path,
) -> None:
    asking = Asking()
    outside = asking.outside
    settings = make_settings(
        "memory://", tmp_path, partitions=1, stalled_after=0.1, circuit_pause=60.0, circuit_pause_max=60.0
    )
    async with running(settings, [asking.service]) as app:
        outside.held = {"slow"}
        await send_each(app, asking.source, ("front", "slow"), ("other", "a"))
        await wait_until(lambda: standstills(app), "the standstill is a fault")
        (fault,) = standstills(app)
        assert "the record at offset 0 waits for an answer from outside" in fault.detail
        outside.let_go("slow")
        await wait_until(lambda: not standstills(app), "the fault is over")
        outside.away = True
        await send_each(app, asking.source, *((f"k{number}", "a") for number in range(OUTCOMES_MIN)))
        await wait_until(app.engine.pauses, "calls are paused")
        clock = Clock()
        watch = StandstillWatch(app.engine, clock)
        await watch.look()
        clock.now += 1000
        await watch.look()
        assert (standstills(app), watch.seconds()) == ([], {})


class Clock:
    """Seconds that pass when the test says so."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


async def test_records_that_are_not_read_or_not_finished_are_faults_and_those_that_are_handled_in_time_are_not(
    tmp_path: Path,
) -> None:
    tally, finish = Tally(), asyncio.Event()
    finish.set()
    process = Dispatch.process

    async def process_slowly(dispatch: Dispatch, fetched: Fetched, agent: str, handle: RecordHandler) -> None:
        await finish.wait()
        await process(dispatch, fetched, agent, handle)

    settings = make_settings("memory://", tmp_path, partitions=1)
    clock = Clock()
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Dispatch, "process", process_slowly)
        async with running(settings, [tally.service]) as app:
            watch = StandstillWatch(app.engine, clock)
            for word in (b"a", b"b", b"c"):  # behind at each look, and further each time
                finish.clear()
                await publish(app, tally.source, "k", word)
                await wait_until(lambda: app.engine.tasks[0].backlog.queued.total(), "the agent has it")
                clock.now += 1000
                await watch.look()
                assert (standstills(app), list(watch.seconds().values())) == ([], [0.0])
                finish.set()
                await at_rest(app)
            finish.clear()
            await publish(app, tally.source, "k", b"d")
            await wait_until(lambda: app.engine.tasks[0].backlog.queued.total(), "the agent has it")
            await watch.look()
            clock.now += 1000
            await watch.look()
            (fault,) = standstills(app)
            assert "it was handed records, and does not finish them" in fault.detail
            finish.set()
            await at_rest(app)
            await watch.look()
            assert standstills(app) == []

            patched.setattr(app.engine, "task_for", lambda topic, number: None)
            await publish(app, tally.source, "k", b"e")
            await watch.look()
            clock.now += 1000
            await watch.look()
            (fault,) = standstills(app)
            assert "its records are not read" in fault.detail


# ---- decisions


def unknown_version(letter_id: str) -> bytes:
    """A decision about a letter, in a version that this release does not know."""
    about: dict[str, Any] = {"event_id": str(uuid.uuid4()), "aggregate_id": letter_id, "timestamp": datetime.now(UTC)}
    known = encode_envelope(new_envelope(RetryDeadLetter(letter_id), metadata=Metadata(), **about))
    return known.replace(b'"version":1', b'"version":9')


async def decide_wrongly(app: EngineApp, number: int, letter_id: str, count: int) -> None:
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


async def test_lanes_of_a_service_that_is_gone_take_no_room_from_others(tmp_path: Path) -> None:
    gone, asking = Tally("gone", "gone"), Asking()
    asking.outside.refused = {"bad"}
    gone.poison = {b"bad"}
    settings = make_settings("embedded://", tmp_path, retry_count=0, waiting_max=2, partitions=1)
    app = await start(settings, [gone.service, asking.service, managing.service])
    await publish(app, gone.source, "k", b"bad", b"b", b"c", b"d")
    await wait_until(lambda: without_room(app.engine.tasks[0]) and open_letters(app), "all room is taken")
    await crash(app)
    async with running(settings, [asking.service, managing.service]) as app:
        await send_each(app, asking.source, ("k", "bad"), ("k", "b"), ("other", "a"))
        await at_rest(app)
        assert (asking.answers(app, "other"), without_room(app.engine.tasks[0])) == (("A",), [])
