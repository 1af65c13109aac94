"""No way to stand still for ever: what makes room is never behind what waits for room, and what stands still shows."""

from __future__ import annotations

from pathlib import Path

import pytest

from agents import dead_letters as managing
from streams.app import OrdersApp
from streams.doctor import check_stalled
from streams.engine.standstill import without_room
from streams.topics import Topic
from tests.apps import TRANSPORTS, at_rest, broker_url, make_settings, publish, running, wait_until
from tests.integration.test_engine_outside import Asking, ask, keys_of
from tests.letters import discard, lanes, open_letters, retry


@pytest.fixture(params=TRANSPORTS)
def broker(request: pytest.FixtureRequest) -> str:
    return broker_url(request)


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
