"""Dead letters over HTTP: lists, groups, one in full, and the aggregates that stand still behind them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from engine.faust.app import EngineApp
from engine.web.dead_letters import queries as dead_letter_queries
from streams.topics import INVENTORY_COMMANDS, ORDER_COMMANDS
from tests.apps import Tally, at_rest, publish, running, wait_until
from tests.integration.dead_letters import fail, failing_settings, letters, services, value
from tests.integration.web import check_problem, check_unavailable, client_of, find, hold_up, order, place


@pytest.fixture
def tally() -> Tally:
    return Tally()


@pytest_asyncio.fixture(params=["memory", "embedded"])
async def failing(request: pytest.FixtureRequest, tally: Tally, tmp_path: Path) -> AsyncIterator[EngineApp]:
    """An application whose handler fails on demand, at once for good."""
    settings = failing_settings(f"{request.param}://", tmp_path, partitions=3)
    async with running(settings, services(tally)) as app:
        yield app


@pytest_asyncio.fixture
async def client(failing: EngineApp) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(failing) as client:
        yield client


async def test_a_letter_in_a_list_says_what_failed_where_and_why(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    assert await find(client, "/dead-letters") == {"items": [], "next_cursor": None}
    await fail(failing, tally, "k", "e-1", "e-2", "e-3")
    (letter,) = await letters(client)
    partition = failing.engine.partition_for(b"k")
    assert letter["id"].startswith(f"{partition}-")
    assert letter["failed_at"].endswith("Z")
    assert len(letter["fingerprint"]) == 16
    known = {name: letter[name] for name in letter if name not in ("id", "failed_at", "fingerprint", "error")}
    assert known == {
        "state": "open", "topic": tally.source.name, "partition": partition, "offset": 0, "agent": "tally", "key": "k",
        "event_id": "e-1", "event_type": "tally.add", "correlation_id": "c-e-1", "error_type": "HandlerFailed",
        "retry_count": 0, "replays": 0, "waiting": 2, "size_bytes": len(value("e-1")),
    }  # fmt: skip


async def test_pages_hold_every_letter_once_newest_first(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dead_letter_queries, "SLICE_S", 0.0)  # a break behind every letter,
    monkeypatch.setattr(dead_letter_queries, "SCAN_S", 0.0)  # and as many answers
    for n in range(17):
        await fail(failing, tally, f"k-{n}", f"e-{n}")
    whole = await letters(client, limit=1000)
    assert [letter["key"] for letter in whole] == [f"k-{n}" for n in reversed(range(17))]
    for limit in (1, 3, 16, 17):
        seen: list[Any] = []
        cursor: str | None = ""
        while cursor is not None:
            page = await find(client, "/dead-letters", limit=limit, cursor=cursor)
            assert 0 < len(page["items"]) <= limit
            seen += page["items"]
            cursor = page["next_cursor"]
        assert seen == whole


async def test_filters_all_have_to_hold(failing: EngineApp, client: httpx.AsyncClient, tally: Tally) -> None:
    for n in range(3):
        await fail(failing, tally, f"k-{n}", f"e-{n}")
    fingerprint = (await letters(client))[0]["fingerprint"]
    everything: tuple[dict[str, str], ...] = (
        {"topic": tally.source.name}, {"type": "tally.add"}, {"agent": "tally"}, {"error": "HandlerFailed"},
        {"fingerprint": fingerprint}, {"newer_than": "1h"}, {"older_than": "0s"}, {"state": "all"},
    )  # fmt: skip
    for query in everything:
        assert len(await letters(client, **query)) == 3, query
    assert [letter["key"] for letter in await letters(client, error='"EVENTID":"E-1"')] == ["k-1"]
    assert [letter["key"] for letter in await letters(client, key="k-2", agent="tally")] == ["k-2"]
    nothing: tuple[dict[str, str], ...] = (
        {"topic": "t"}, {"type": "tally"}, {"agent": "t"}, {"error": "handlerfaile"}, {"fingerprint": "0"},
        {"older_than": "1h"}, {"newer_than": "0s"}, {"state": "resolved"}, {"state": "discarded"}, {"key": "k"},
        {"key": "k-2", "error": "e-1"}, {"state": "retrying"},
    )  # fmt: skip
    for query in nothing:
        assert await letters(client, **query) == [], query


BAD_FILTERS = (
    "limit=0", "limit=1001", "limit=x", "state=dead", "topic=", "older_than=1", "older_than=1w", "newer_than=-1s",
    "newer_than=9999d", "older_than=",
)  # fmt: skip
BAD_CURSORS = ("cursor=x", "cursor=AAAA", "cursor=__________8AAA")


@pytest.mark.parametrize(
    "path",
    [f"/dead-letters?{query}" for query in (*BAD_FILTERS, *BAD_CURSORS)]
    + [f"/dead-letters/groups?{query}" for query in BAD_FILTERS],
)
async def test_what_cannot_be_used_is_a_problem_with_its_field(client: httpx.AsyncClient, path: str) -> None:
    problem = check_problem(await client.get(path), 422)
    assert [error["field"] for error in problem["errors"]] == [path.partition("?")[2].partition("=")[0]]


async def test_what_failed_alike_is_one_group(failing: EngineApp, client: httpx.AsyncClient, tally: Tally) -> None:
    for n in range(4):
        await fail(failing, tally, f"k-{n}", f"e-{n}", f"behind-{n}")
    await publish(failing, tally.source, "other", b"no JSON")
    tally.poison.add(b"\xffbytes")
    await publish(failing, tally.source, "other", b"\xffbytes")
    await at_rest(failing)
    groups = (await find(client, "/dead-letters/groups"))["items"]
    assert [(group["count"], group["waiting"]) for group in groups] == [(4, 4), (1, 0)]
    first, second = groups
    listed = await letters(client)
    assert second["example_id"] == listed[0]["id"]
    assert (first["example_id"], first["last_failed_at"]) == (listed[1]["id"], listed[1]["failed_at"])
    assert first["first_failed_at"] == listed[-1]["failed_at"]
    assert (first["topic"], first["agent"], first["error_type"]) == (tally.source.name, "tally", "HandlerFailed")
    assert (await find(client, "/dead-letters/groups", fingerprint=second["fingerprint"]))["items"] == [second]
    assert (await find(client, "/dead-letters/groups", limit=1))["items"] == [first]


async def test_one_letter_is_shown_in_full(failing: EngineApp, client: httpx.AsyncClient, tally: Tally) -> None:
    await fail(failing, tally, "k", "e-1", *(f"w-{n}" for n in range(25)))
    (listed,) = await letters(client)
    letter = await find(client, f"/dead-letters/{listed['id']}")
    assert {name: letter[name] for name in listed} == listed
    assert letter["value"]["payload"] == {"amount": 1}
    assert (letter["complete"], letter["headers"], letter["actions"], letter["refusal"]) == (True, {}, [], None)
    assert "HandlerFailed" in letter["trace"]
    assert letter["closed_at"] is None
    assert letter["waiting"] == 25
    assert letter["waiting_records"] == [
        {"offset": n + 1, "event_id": f"w-{n}", "event_type": "tally.add"} for n in range(20)
    ]
    assert letter["recent_events"] == []


async def test_a_value_that_is_not_json_is_shown_as_bytes(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    tally.poison.add(b"\xff\x00")
    await publish(failing, tally.source, "k", b"\xff\x00")
    await at_rest(failing)
    (listed,) = await letters(client)
    letter = await find(client, f"/dead-letters/{listed['id']}")
    assert (letter["value"], letter["value_base64"], letter["event_id"]) == (None, "/wA=", None)


async def test_aggregates_that_stand_still_are_listed_with_the_reason(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    for n in range(7):
        await fail(failing, tally, f"k-{n}", f"e-{n}", f"w-{n}")
    ids = {letter["key"]: letter["id"] for letter in await letters(client)}
    seen: dict[str, Any] = {}
    cursor: str | None = ""
    while cursor is not None:
        page = await find(client, "/aggregates/waiting", limit=2, cursor=cursor)
        seen |= {item["key"]: item for item in page["items"]}
        cursor = page["next_cursor"]
    assert {key: item["dead_letter_id"] for key, item in seen.items()} == ids
    assert {(item["waiting"], item["next_retry_at"], item["agent"]) for item in seen.values()} == {(1, None, "tally")}
    assert {item["topic"] for item in seen.values()} == {tally.source.name}


async def test_one_that_is_tried_again_stands_still_until_then(tally: Tally, tmp_path: Path) -> None:
    settings = failing_settings("memory://", tmp_path, retry_count=1, retry_backoff=3600.0)
    async with running(settings, services(tally)) as app, client_of(app) as client:
        tally.poison.add(value("e-1"))
        positions = await publish(app, tally.source, "k", value("e-1"), value("e-2"))
        task = app.engine.task(positions[-1].partition)
        await task.waiters.wait("tally", tally.source.name, positions[-1].offset + 1, 10)
        (item,) = (await find(client, "/aggregates/waiting"))["items"]
        assert (item["waiting"], item["dead_letter_id"]) == (1, None)
        assert item["next_retry_at"] > item["since"]
        assert await letters(client) == []


@pytest.mark.parametrize("id", ["x", "0-1", "99-1", "1", "-", "0-", "0-99999999999999999999", "%2F"])
async def test_there_is_no_letter_under_another_id(client: httpx.AsyncClient, id: str) -> None:
    check_problem(await client.get(f"/dead-letters/{id}"), 404)


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("dead-letters-list/x", 404),
        ("nothing/0", 404),
        ("dead-letters-list/0", 400),
        ("dead-letters-list/7?asked=%7B%22wanted%22:%7B%7D%7D", 503),
    ],
)
async def test_workers_are_told_what_they_cannot_ask(client: httpx.AsyncClient, path: str, status: int) -> None:
    check_problem(await client.get(f"/internal/queries/{path}"), status)


@pytest.mark.parametrize("path", ["/dead-letters", "/dead-letters/groups", "/aggregates/waiting"])
async def test_a_partition_that_cannot_be_read_is_not_left_out(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally, path: str
) -> None:
    await fail(failing, tally, "k", "e-1")
    await hold_up(failing)
    await find(client, path)
    failing.consumer_generation_id += 1
    await failing.engine.assigned({0, 1}, failing.consumer_generation_id)
    check_unavailable(await client.get(path))


# ---- figures and the doctor


async def figures(client: httpx.AsyncClient) -> dict[str, dict[tuple[str, ...], float]]:
    """Families of /metrics: values by labels."""
    families = text_string_to_metric_families((await client.get("/metrics")).text)
    return {
        family.name: {tuple(sample.labels.values()): sample.value for sample in family.samples} for family in families
    }


async def test_figures_follow_what_fails_waits_and_is_decided(
    failing: EngineApp, client: httpx.AsyncClient, tally: Tally
) -> None:
    before = await figures(client)
    assert (before["dead_letters"], before["dead_letter_oldest_seconds"]) == ({}, {(): 0.0})
    assert before["aggregates_waiting"] == {("parked",): 0.0, ("retrying",): 0.0}
    for n in range(3):
        await fail(failing, tally, f"k-{n}", f"e-{n}", f"w-{n}")
    await asyncio.sleep(0.02)
    found = await figures(client)
    assert found["dead_letters"] == {(tally.source.name,): 3.0}
    assert 0.02 <= found["dead_letter_oldest_seconds"][()] < 30
    assert found["records_waiting"] == {("tally",): 3.0}
    assert found["aggregates_waiting"] == {("parked",): 3.0, ("retrying",): 0.0}
    tally.poison.clear()
    await client.post("/dead-letters/retry", json={"rate": 1000})
    await at_rest(failing)
    found = await figures(client)
    assert (found["dead_letters"], found["dead_letter_oldest_seconds"]) == ({(tally.source.name,): 0.0}, {(): 0.0})
    assert found["records_waiting"] == {("tally",): 0.0}
    assert found["aggregates_waiting"] == {("parked",): 0.0, ("retrying",): 0.0}


async def test_the_doctor_names_open_letters(failing: EngineApp, client: httpx.AsyncClient, tally: Tally) -> None:
    for n in range(3):
        await fail(failing, tally, f"k-{n}", f"e-{n}")
    checks = {check["check"]: check for check in await find(client, "/doctor")}
    assert not checks["dead letters"]["ok"]
    assert f"{tally.source.name} 3" in checks["dead letters"]["detail"]
    assert "orders dead-letters" in checks["dead letters"]["advice"]
    assert checks["waiting records"]["ok"]


async def test_the_doctor_names_topics_that_stand_still(tally: Tally, tmp_path: Path) -> None:
    settings = failing_settings("memory://", tmp_path, waiting_per_aggregate_max=2)
    async with running(settings, services(tally)) as app, client_of(app) as client:
        tally.poison.add(value("e-1"))
        await publish(app, tally.source, "k", value("e-1"), *(value(f"w-{n}") for n in range(5)))
        await wait_until(lambda: any(task.stalled.sources() for task in app.engine.tasks.values()), "it stands still")
        (check,) = [check for check in await find(client, "/doctor") if check["check"] == "waiting records"]
        assert not check["ok"]
        assert f"{tally.source.name} for tally" in check["detail"]
        assert "ORDERS_WAITING_PER_AGGREGATE_MAX" in check["advice"]
        await client.post("/dead-letters/discard", json={"reason": "r", "all": True})
        await at_rest(app)
        assert [check for check in await find(client, "/doctor") if not check["ok"]] == []


# ---- the whole application


async def test_a_letter_of_an_order_shows_what_happened_before(app: EngineApp) -> None:
    async with client_of(app) as client:
        token = await place(client, order(order_id="o-1", email="a@example.com"))
        await find(client, "/orders/o-1", after=token)
        await publish(app, ORDER_COMMANDS, "o-1", value("odd", kind="order.explode", aggregate_id="o-1"))
        await at_rest(app)
        (listed,) = await letters(client)
        assert (listed["error_type"], listed["key"]) == ("UnknownEventType", "o-1")
        letter = await find(client, f"/dead-letters/{listed['id']}")
        assert [event["event_type"] for event in letter["recent_events"]] == ["order.placed"]
        assert "a@example.com" not in str(letter)


async def test_a_letter_of_a_product_shows_its_newest_events(app: EngineApp) -> None:
    async with client_of(app) as client:
        for n in range(12):
            await client.put("/inventory/SKU-1", json={"quantity": n + 1})
            await client.put("/inventory/SKU-2", json={"quantity": n + 1})
        await publish(app, INVENTORY_COMMANDS, "SKU-1", b"{")
        await at_rest(app)
        (listed,) = await letters(client)
        events = (await find(client, f"/dead-letters/{listed['id']}"))["recent_events"]
        assert [event["payload"]["on_hand"] for event in events] == list(range(3, 13))
        assert {event["aggregate_id"] for event in events} == {"SKU-1"}
