"""Retrying, editing and discarding dead letters over HTTP: each decision takes effect once, and is written down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
import pytest_asyncio

from engine.failures.topics import DEAD_LETTER_COMMANDS
from engine.faust.app import EngineApp
from engine.web.dead_letters import queries as dead_letter_queries
from tests.apps import KAFKA, Seen, Tally, at_rest, publish, read_topic, row, running
from tests.integration.dead_letters import fail, failing_settings, letters, services, value
from tests.integration.test_web_routing import PARTITIONS, three_workers
from tests.integration.web import check_problem, client_of, find, go_on, hold_up, own_broker_url
from tests.kafka import KafkaBroker


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest_asyncio.fixture(params=["memory", "embedded", KAFKA])
async def failing(request: pytest.FixtureRequest, tally: Tally, tmp_path: Path) -> AsyncIterator[EngineApp]:
    """An application whose handler fails on demand, at once for good."""
    async with running(failing_settings(own_broker_url(request), tmp_path), services(tally)) as app:
        yield app


@pytest_asyncio.fixture
async def client(failing: EngineApp) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(failing) as client:
        yield client


async def letter(client: httpx.AsyncClient) -> Any:
    """The only letter there is, open or closed, in full."""
    (listed,) = await letters(client, state="all")
    return await find(client, f"/dead-letters/{listed['id']}")


async def retry(client: httpx.AsyncClient, id: str, status: int = 202, **body: Any) -> Any:
    """Ask for a retry; the JSON of the answer."""
    answer = await client.post(f"/dead-letters/{id}/retry", json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["Location"] == f"/dead-letters/{id}"
    return answer.json()


async def ended(client: httpx.AsyncClient, id: str, token: str) -> Any:
    """The letter when it is not being tried any more."""
    found = await find(client, f"/dead-letters/{id}", after=token)
    while found["state"] == "retrying":
        await asyncio.sleep(0.01)
        found = await find(client, f"/dead-letters/{id}")
    return found


def actions(letter: Any) -> list[str]:
    return [action["action"] for action in letter["actions"]]


def seen(app: EngineApp, tally: Tally, key: str) -> list[str]:
    """Event ids that took effect under the key, in their order."""
    found: Seen | None = row(app, tally.table, key)
    return [msgspec.json.decode(text)["eventId"] for text in (found.values if found is not None else ())]


# ---- retry


async def test_a_retry_that_works_resolves_the_letter_and_lets_go_what_waits(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    await fail(failing, tally, "k", "e-1", "e-2", "e-3")
    tally.poison.clear()
    id = (await letter(client))["id"]
    answer = await retry(client, id)
    assert (answer["id"], answer["status"], answer["state"]) == (id, "processing", "open")
    resolved = await ended(client, id, answer["token"])
    assert (resolved["state"], resolved["replays"], resolved["waiting"]) == ("resolved", 1, 0)
    assert actions(resolved) == ["retry", "resolved"]
    assert resolved["closed_at"] is not None
    await at_rest(failing)
    assert seen(failing, tally, "k") == ["e-1", "e-2", "e-3"]
    assert await letters(client) == []
    assert (await find(client, "/aggregates/waiting"))["items"] == []


async def test_a_double_click_is_one_retry(failing: EngineApp, client: httpx.AsyncClient, tally: Tally) -> None:
    await fail(failing, tally, "k", "e-1")
    id = (await letter(client))["id"]
    first, second = await asyncio.gather(retry(client, id), retry(client, id))
    for token in (first["token"], second["token"]):
        await ended(client, id, token)
    await at_rest(failing)
    failed_again = await letter(client)
    assert (failed_again["state"], failed_again["replays"]) == ("open", 1)
    assert actions(failed_again) == ["retry", "failed"]


async def test_a_retry_after_one_that_worked_changes_nothing(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    await fail(failing, tally, "k", "e-1")
    tally.poison.clear()
    id = (await letter(client))["id"]
    await ended(client, id, (await retry(client, id))["token"])
    again = await retry(client, id, 200)
    assert (again["status"], again["state"]) == ("done", "resolved")
    after = await find(client, f"/dead-letters/{id}", after=again["token"])
    await at_rest(failing)
    assert actions(after) == ["retry", "resolved"]
    assert seen(failing, tally, "k") == ["e-1"]


async def test_one_that_is_being_tried_is_left_alone_and_not_edited(tally: Tally, tmp_path: Path) -> None:
    async with running(failing_settings("memory://", tmp_path), services(tally)) as app, client_of(app) as client:
        await fail(app, tally, "first", "e-0")
        await fail(app, tally, "k", "e-1")
        id = (await letters(client))[0]["id"]
        answer = (await client.post("/dead-letters/retry", json={"rate": 0.001})).json()  # this one in 1000 s
        assert (await find(client, f"/dead-letters/{id}", after=answer["token"]))["state"] == "retrying"
        assert (await retry(client, id))["state"] == "retrying"
        refused = await client.post(f"/dead-letters/{id}/retry", json={"payload": {"amount": 2}})
        assert check_problem(refused, 409)["reason"] == "retrying"


async def test_a_read_with_the_token_waits_for_the_command(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    await fail(failing, tally, "k", "e-1")
    id = (await letter(client))["id"]
    await hold_up(failing)
    token = (await retry(client, id))["token"]
    late = await client.get(f"/dead-letters/{id}", params={"after": token, "timeout": "50ms"})
    assert check_problem(late, 504)["agent"] == "manage-dead-letters"


# ---- edit and retry


async def test_another_payload_is_another_command_that_the_original_caused(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    await fail(failing, tally, "k", "e-1", "e-2")
    tally.poison.discard(value("e-2"))
    id = (await letter(client))["id"]
    answer = await retry(client, id, payload={"amount": 2})
    edited = await ended(client, id, answer["token"])
    assert (edited["state"], actions(edited)) == ("resolved", ["edit", "retry", "resolved"])
    changes = msgspec.json.decode(edited["actions"][0]["detail"])
    assert {"path": "$.payload.amount", "before": 1, "after": 2} in changes
    assert edited["value"]["payload"] == {"amount": 2}
    assert edited["value"]["metadata"] == {"correlationId": "c-e-1", "causationId": "e-1"}
    assert edited["event_id"] == edited["value"]["eventId"] != "e-1"
    await at_rest(failing)
    assert seen(failing, tally, "k") == [edited["event_id"], "e-2"]
    assert (await retry(client, id, 200, payload={"amount": 2}))["state"] == "resolved"
    refused = await client.post(f"/dead-letters/{id}/retry", json={"payload": {"amount": 3}})
    assert check_problem(refused, 409)["reason"] == "resolved"


async def test_a_whole_record_can_be_given_where_the_original_is_none(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    tally.poison.add(b"no envelope")
    await publish(failing, tally.source, "k", b"no envelope")
    await at_rest(failing)
    id = (await letter(client))["id"]
    problem = check_problem(await client.post(f"/dead-letters/{id}/retry", json={"payload": {}}), 422)
    assert problem["errors"][0]["field"] == "payload"
    answer = await retry(client, id, value={"eventId": "mended", "amount": 1})
    resolved = await ended(client, id, answer["token"])
    assert (resolved["state"], actions(resolved)) == ("resolved", ["edit", "retry", "resolved"])
    assert resolved["actions"][0]["detail"] == "the whole value was replaced"
    assert seen(failing, tally, "k") == ["mended"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ('{"payload": {}, "value": {}}', 422), ('{"payload": []}', 422), ('{"payload": "x"}', 422), ("[]", 422),
        ("{", 422), ('{"payloads": {}}', 422), ('{"value": {"eventId": "e-1"}}', 422), ('{"value": {}}', 422),
        ('{"payload": {"x": NaN}}', 422), ('{"payload": {"x": "' + "x" * (512 << 10) + '"}}', 413),
        ('{"payload": {"x": ' + "[" * 9000 + "]" * 9000 + "}}", 422),
    ],
)  # fmt: skip
async def test_what_cannot_be_used_is_a_problem_and_changes_nothing(
    tally: Tally, tmp_path: Path, body: str, status: int
) -> None:
    async with running(failing_settings("memory://", tmp_path), services(tally)) as app, client_of(app) as client:
        await fail(app, tally, "k", "e-1")
        before = await letter(client)
        check_problem(await client.post(f"/dead-letters/{before['id']}/retry", content=body), status)
        assert await read_topic(app, DEAD_LETTER_COMMANDS) == []
        assert await letter(client) == before


async def test_why_a_letter_may_not_be_tried_again_has_a_code(tally: Tally, tmp_path: Path) -> None:
    settings = failing_settings("memory://", tmp_path, replays_max=1)
    async with running(settings, services(tally)) as app, client_of(app) as client:
        await fail(app, tally, "k", "e-1")
        id = (await letter(client))["id"]
        await ended(client, id, (await retry(client, id))["token"])
        await at_rest(app)
        refused = check_problem(await client.post(f"/dead-letters/{id}/retry"), 409)
        assert refused["reason"] == (await letter(client))["refusal"]["reason"] == "too_many_replays"
        for dry_run in (True, False):
            answer = (await client.post("/dead-letters/retry", json={"dry_run": dry_run})).json()
            assert answer == {
                "dry_run": dry_run, "matched": 1, "retried": 0, "skipped": [{"id": id, "reason": "too_many_replays"}],
                "skipped_count": 1, "token": None,
            }  # fmt: skip
        assert actions(await letter(client)) == ["retry", "failed"]


async def test_a_letter_that_is_too_old_can_only_be_edited(tally: Tally, tmp_path: Path) -> None:
    settings = failing_settings("memory://", tmp_path, replay_max_age=0.001)
    async with running(settings, services(tally)) as app, client_of(app) as client:
        await fail(app, tally, "k", "e-1")
        await asyncio.sleep(0.01)
        id = (await letter(client))["id"]
        assert check_problem(await client.post(f"/dead-letters/{id}/retry"), 409)["reason"] == "too_old"
        answer = await retry(client, id, payload={"amount": 2})
        assert (await ended(client, id, answer["token"]))["state"] == "resolved"


@pytest.mark.parametrize("verb", ["retry", "discard"])
@pytest.mark.parametrize("id", ["0-1", "x", "99-1"])
async def test_there_is_nothing_to_decide_about_an_unknown_letter(
    tally: Tally, tmp_path: Path, id: str, verb: str
) -> None:
    async with running(failing_settings("memory://", tmp_path), services(tally)) as app, client_of(app) as client:
        body = {"reason": "r"} if verb == "discard" else {}
        check_problem(await client.post(f"/dead-letters/{id}/{verb}", json=body), 404)


async def test_decisions_need_the_token(tally: Tally, tmp_path: Path) -> None:
    settings = failing_settings("memory://", tmp_path, api_token="secret")
    async with running(settings, services(tally)) as app, client_of(app) as client:
        for path in ("0-1/retry", "0-1/discard", "retry", "discard"):
            check_problem(await client.post(f"/dead-letters/{path}", json={}), 401)
        await find(client, "/dead-letters")


# ---- decisions that exclude each other


async def test_of_two_edits_at_once_one_is_tried_and_the_other_one_is_told_so_and_written_down(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    await fail(failing, tally, "k", "e-1")
    id = (await letter(client))["id"]
    await hold_up(failing)
    asking = [
        asyncio.ensure_future(
            client.post(f"/dead-letters/{id}/retry", params={"wait": "20s"}, json={"payload": {"amount": amount}})
        )
        for amount in (2, 3)
    ]
    topic = DEAD_LETTER_COMMANDS
    while len(await read_topic(failing, topic)) < 2:
        await asyncio.sleep(0.01)
    await go_on(failing)
    answers = await asyncio.gather(*asking)
    (first,) = [answer for answer in answers if answer.status_code == 200]
    (second,) = [answer for answer in answers if answer.status_code == 409]
    assert (first.json()["id"], first.json()["status"]) == (id, "done")
    assert first.json()["state"] in ("retrying", "resolved")
    problem = check_problem(second, 409)
    assert problem["reason"] in ("retrying", "resolved")
    assert id in problem["detail"]

    resolved = await ended(client, id, first.json()["token"])
    assert (resolved["state"], resolved["replays"]) == ("resolved", 1)
    (lost,) = [line for line in resolved["actions"] if line["refused"] is not None]
    assert (lost["action"], lost["refused"]["reason"]) == ("edit", problem["reason"])
    (change,) = [change for change in msgspec.json.decode(lost["detail"]) if change["path"] == "$.payload.amount"]
    assert change["after"] == {2: 3, 3: 2}[resolved["value"]["payload"]["amount"]]
    carried_out = [line for line in resolved["actions"] if line["refused"] is None]
    assert [line["action"] for line in carried_out] == ["edit", "retry", "resolved"]
    assert carried_out[0]["decision"] == carried_out[1]["decision"] != lost["decision"]
    await at_rest(failing)
    assert len(seen(failing, tally, "k")) == 1


async def test_of_a_discard_and_a_retry_at_once_the_later_one_is_told_what_came_first(
    tally: Tally, tmp_path: Path
) -> None:
    async with running(failing_settings("memory://", tmp_path), services(tally)) as app, client_of(app) as client:
        await check_discard_before_retry(app, client, tally)


async def check_discard_before_retry(failing: EngineApp, client: httpx.AsyncClient, tally: Tally) -> None:
    await fail(failing, tally, "k", "e-1")
    id = (await letter(client))["id"]
    await hold_up(failing)
    reason = {"reason": "a duplicate"}
    discarding = asyncio.ensure_future(client.post(f"/dead-letters/{id}/discard", params={"wait": "20s"}, json=reason))
    while not await read_topic(failing, DEAD_LETTER_COMMANDS):
        await asyncio.sleep(0.01)
    retrying = asyncio.ensure_future(client.post(f"/dead-letters/{id}/retry", params={"wait": "20s"}))
    again = asyncio.ensure_future(client.post(f"/dead-letters/{id}/discard", params={"wait": "20s"}, json=reason))
    while len(await read_topic(failing, DEAD_LETTER_COMMANDS)) < 3:
        await asyncio.sleep(0.01)
    await go_on(failing)
    assert ((await discarding).status_code, (await discarding).json()["state"]) == (200, "discarded")
    assert check_problem(await retrying, 409)["reason"] == "discarded"
    assert ((await again).status_code, (await again).json()["status"]) == (200, "done")  # the same wish
    lines = (await letter(client))["actions"]
    assert [(line["action"], line["refused"] and line["refused"]["reason"]) for line in lines] == [
        ("discard", None),
        ("retry", "discarded"),
    ]
    await at_rest(failing)
    assert seen(failing, tally, "k") == []


async def test_a_decision_that_takes_longer_than_it_is_waited_for_is_on_its_way(tally: Tally, tmp_path: Path) -> None:
    async with running(failing_settings("memory://", tmp_path), services(tally)) as app, client_of(app) as client:
        await fail(app, tally, "k", "e-1")
        id = (await letter(client))["id"]
        await hold_up(app)
        answer = await client.post(f"/dead-letters/{id}/retry", params={"wait": "50ms"})
        assert (answer.status_code, answer.json()["status"], answer.json()["state"]) == (202, "processing", "open")
        assert check_problem(await client.post(f"/dead-letters/{id}/retry", params={"wait": "soon"}), 422)
        assert len(await read_topic(app, DEAD_LETTER_COMMANDS)) == 1


# ---- discard


async def test_a_discarded_letter_lets_go_what_waits_behind_it_in_order(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    await fail(failing, tally, "k", "e-1", "e-2", "e-3", "e-4")
    tally.poison.clear()
    id = (await letter(client))["id"]
    answer = await client.post(f"/dead-letters/{id}/discard", json={"reason": "a duplicate"})
    assert answer.status_code == 202, answer.text
    discarded = await find(client, f"/dead-letters/{id}", after=answer.json()["token"])
    assert (discarded["state"], discarded["actions"][0]["detail"]) == ("discarded", "a duplicate")
    assert actions(discarded) == ["discard"]
    await at_rest(failing)
    assert seen(failing, tally, "k") == ["e-2", "e-3", "e-4"]
    again = await client.post(f"/dead-letters/{id}/discard", json={"reason": "again"})
    assert (again.status_code, again.json()["state"]) == (200, "discarded")
    assert check_problem(await client.post(f"/dead-letters/{id}/retry"), 409)["reason"] == "discarded"
    assert actions(await letter(client)) == ["discard"]


async def test_what_was_processed_cannot_be_discarded(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    await fail(failing, tally, "k", "e-1")
    tally.poison.clear()
    id = (await letter(client))["id"]
    await ended(client, id, (await retry(client, id))["token"])
    refused = await client.post(f"/dead-letters/{id}/discard", json={"reason": "r"})
    assert check_problem(refused, 409)["reason"] == "resolved"


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": "x" * 1001}, {"reason": 1}, {"reason": None}])
async def test_a_discard_needs_a_reason(tally: Tally, tmp_path: Path, body: Any) -> None:
    async with running(failing_settings("memory://", tmp_path), services(tally)) as app, client_of(app) as client:
        await fail(app, tally, "k", "e-1")
        id = (await letter(client))["id"]
        for path in (f"/dead-letters/{id}/discard", "/dead-letters/discard"):
            problem = check_problem(await client.post(path, json=body), 422)
            assert [error["field"] for error in problem["errors"]] == ["reason"]
        assert (await letter(client))["state"] == "open"


# ---- many


async def test_many_are_retried_by_filter_oldest_first_and_spaced(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    for n in range(6):
        await fail(failing, tally, f"k-{n}", f"e-{n}")
    await fail(failing, tally, "other", "odd")
    listed = await letters(client)
    asked: dict[str, Any] = {"error": '"eventId":"e-', "limit": 5, "rate": 20}
    tried = (await client.post("/dead-letters/retry", json=asked | {"dry_run": True})).json()
    expected = {"dry_run": True, "matched": 5, "retried": 5, "skipped": [], "skipped_count": 0, "token": None}
    assert tried == expected
    assert await letters(client) == listed
    assert await read_topic(failing, DEAD_LETTER_COMMANDS) == []

    tally.poison.clear()
    answer = await client.post("/dead-letters/retry", json=asked)
    assert answer.status_code == 202
    assert answer.json() == expected | {"dry_run": False, "token": answer.json()["token"]}
    commands = [msgspec.json.decode(record.value or b"") for record in await read_topic(failing, DEAD_LETTER_COMMANDS)]
    payloads = sorted((command["payload"] for command in commands), key=lambda payload: payload["notBeforeMs"])
    oldest = [letter["id"] for letter in reversed(listed) if letter["key"] != "other"][:5]
    assert [payload["deadLetterId"] for payload in payloads] == oldest
    begins = payloads[0]["notBeforeMs"]
    assert [payload["notBeforeMs"] - begins for payload in payloads] == [0, 50, 100, 150, 200]
    for id in oldest:
        assert (await ended(client, id, answer.json()["token"]))["state"] == "resolved"
    assert {letter["key"] for letter in await letters(client)} == {"k-5", "other"}


async def test_many_are_discarded_by_filter(failing: EngineApp, client: httpx.AsyncClient, tally: Tally) -> None:
    for n in range(3):
        await fail(failing, tally, f"k-{n}", f"e-{n}", f"w-{n}")
    tally.poison.clear()
    one = {"reason": "r", "key": "k-1"}
    tried = (await client.post("/dead-letters/discard", json=one | {"dry_run": True})).json()
    assert (tried["matched"], tried["discarded"], tried["token"]) == (1, 1, None)
    assert len(await letters(client)) == 3
    for body, count in ((one, 1), ({"reason": "r", "all": True}, 2), ({"reason": "r", "all": True}, 0)):
        answer = await client.post("/dead-letters/discard", json=body)
        assert (answer.status_code, answer.json()["discarded"]) == (202 if count else 200, count)
        await at_rest(failing)
    assert await letters(client) == []
    assert len(await letters(client, state="discarded")) == 3
    assert [seen(failing, tally, f"k-{n}") for n in range(3)] == [[f"w-{n}"] for n in range(3)]


async def test_decisions_about_many_that_are_waited_for_say_which_were_carried_out_and_why_not(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    for n in range(4):
        await fail(failing, tally, f"k-{n}", f"e-{n}")
    tally.poison.clear()
    first, *others = [letter["id"] for letter in await letters(client)]
    await hold_up(failing)
    reason = {"reason": "a duplicate"}
    await client.post(f"/dead-letters/{first}/discard", json=reason)
    wait = {"wait": "30s"}
    retrying = asyncio.ensure_future(client.post("/dead-letters/retry", params=wait, json={"rate": 1000}))
    while len(await read_topic(failing, DEAD_LETTER_COMMANDS)) < 5:
        await asyncio.sleep(0.01)
    await go_on(failing)
    answer = (await retrying).json()
    assert ((await retrying).status_code, answer["matched"], answer["retried"]) == (200, 4, 4)
    assert answer["decisions"] == {
        "applied": 3,
        "refused": [{"id": first, "reason": "discarded", "detail": "it was discarded"}],
        "refused_count": 1,
        "undecided": 0,
    }
    for id in others:
        assert (await ended(client, id, answer["token"]))["state"] == "resolved"
    none = (await client.post("/dead-letters/discard", params=wait, json=reason | {"all": True})).json()
    assert (none["discarded"], "decisions" in none) == (0, False)


async def test_decisions_about_many_that_take_longer_than_they_are_waited_for_are_undecided(
    tally: Tally, tmp_path: Path
) -> None:
    async with running(failing_settings("memory://", tmp_path), services(tally)) as app, client_of(app) as client:
        await fail(app, tally, "k", "e-1")
        await hold_up(app)
        answer = await client.post("/dead-letters/discard", params={"wait": "50ms"}, json={"reason": "r", "all": True})
        assert answer.status_code == 202
        assert answer.json()["decisions"] == {"applied": 0, "refused": [], "refused_count": 0, "undecided": 1}


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("retry", {"topics": "t"}, "topics"), ("retry", {"state": "all"}, "state"), ("retry", {"topic": ""}, "topic"),
        ("retry", {"limit": 0}, "limit"), ("retry", {"limit": 10_001}, "limit"), ("retry", {"rate": 0}, "rate"),
        ("retry", {"older_than": "1"}, "older_than"), ("retry", {"dry_run": "no"}, "dry_run"), ("retry", [], "body"),
        ("discard", {"reason": "r"}, "all"), ("discard", {"reason": "r", "all": False}, "all"),
        ("discard", {"reason": "r", "all": True, "topic": "t"}, "all"), ("discard", {"reason": "r", "key": 1}, "key"),
        ("discard", {"reason": "r", "topic": "t", "rate": 1}, "rate"),
    ],
)  # fmt: skip
async def test_a_filter_that_cannot_be_used_means_no_letter(
    tally: Tally, tmp_path: Path, path: str, body: Any, field: str
) -> None:
    async with running(failing_settings("memory://", tmp_path), services(tally)) as app, client_of(app) as client:
        await fail(app, tally, "k", "e-1")
        problem = check_problem(await client.post(f"/dead-letters/{path}", json=body), 422)
        assert [error["field"] for error in problem["errors"]] == [field]
        await at_rest(app)
        assert (await letter(client))["actions"] == []


# ---- three workers


async def test_every_worker_shows_and_changes_every_letter(
    private_kafka_broker: KafkaBroker, tally: Tally, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letter_queries, "SCAN_S", 0.0)  # owners answer letter by letter
    async with three_workers(private_kafka_broker, tmp_path, services(tally), retry_count=0) as (apps, clients):
        assert all(app.engine.numbers for app in apps)
        for n in range(24):
            values = [value(f"e-{n}"), value(f"w-{n}")]
            tally.poison |= set(values)
            await publish(apps[0], tally.source, f"k-{n}", *values)

        async def are_all_there() -> bool:
            waiting = (await find(clients[0], "/aggregates/waiting", limit=1000))["items"]
            return bool(sum(item["waiting"] for item in waiting) == 24)

        while not await are_all_there():
            await asyncio.sleep(0.05)
        paths = ["/dead-letters?limit=1000", "/dead-letters/groups", "/aggregates/waiting?limit=1000"]
        listed = await letters(clients[0], limit=1000)
        assert len({letter["partition"] for letter in listed}) == PARTITIONS
        for path in [*paths, *(f"/dead-letters/{letter['id']}" for letter in listed)]:
            assert len({(await client.get(path)).text for client in clients}) == 1
        for client in clients:
            seen: list[Any] = []
            cursor: str | None = ""
            while cursor is not None:
                page = await find(client, "/dead-letters", limit=7, cursor=cursor)
                seen += page["items"]
                cursor = page["next_cursor"]
            assert seen == listed

        tally.poison.clear()
        for n, letter in enumerate(listed[:9]):
            answer = await retry(clients[n % 3], letter["id"])
            resolved = await ended(clients[(n + 1) % 3], letter["id"], answer["token"])
            assert resolved["state"] == "resolved"
        for n, letter in enumerate(listed[9:12]):
            discarding = await clients[n].post(f"/dead-letters/{letter['id']}/discard", json={"reason": "r"})
            token = discarding.json()["token"]
            found = await find(clients[n - 1], f"/dead-letters/{letter['id']}", after=token)
            assert found["state"] == "discarded"
        many = (await clients[2].post("/dead-letters/retry", params={"wait": "30s"}, json={"rate": 1000})).json()
        assert (many["retried"], many["skipped_count"]) == (12, 0)
        assert many["decisions"] == {"applied": 12, "refused": [], "refused_count": 0, "undecided": 0}
        for letter in listed[12:]:
            assert (await ended(clients[0], letter["id"], many["token"]))["state"] == "resolved"
        assert await letters(clients[1]) == []
