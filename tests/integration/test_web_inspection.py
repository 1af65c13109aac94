"""Routes for people who look after the system: tables, topics, doctor, health and metrics."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from prometheus_client.parser import text_string_to_metric_families

from engine.declare.handlers import RecordHandler
from engine.declare.service import Service
from engine.declare.topic import Topic
from engine.faust.app import EngineApp
from engine.health.faults import Fault
from engine.partition.dispatch import Dispatch
from engine.web.routes import health
from engine.work.fetched import Fetched
from streams.topics import ORDER_COMMANDS
from tests.apps import caught_up, make_settings, publish, running, wait_until
from tests.integration.web import check_problem, check_unavailable, client_of, find, go_on, hold_up, order, place


@pytest_asyncio.fixture
async def thirty_orders(app: EngineApp, client: httpx.AsyncClient) -> None:
    """Place thirty orders of one customer and wait until all views have them."""
    lines = [json.dumps(order("c-1", f"o-{n:02}", email="a@example.com")) for n in range(30)]
    token = (await client.post("/orders/batch", content="\n".join(lines))).json()["token"]
    await find(client, "/customers/c-1/orders", after=token, timeout="30s")
    await caught_up(app)


# ---- tables


@pytest.mark.usefixtures("thirty_orders")
async def test_tables_are_listed_with_their_sizes_and_partitions(client: httpx.AsyncClient) -> None:
    listed = await find(client, "/tables")
    tables = {table["name"]: table for table in listed["items"]}
    assert {"orders", "order-history", "customer-orders", "handled-commands", "order-requests"} <= set(tables)
    assert (tables["orders"]["rows"], tables["orders"]["rows_are_more"]) == (30, False)
    assert sum(partition["rows"] for partition in tables["orders"]["partitions"]) == 30
    assert [store["partition"] for store in listed["stores"]] == [0, 1]


@pytest.mark.usefixtures("thirty_orders")
@pytest.mark.parametrize("table", ["orders", "order-history", "customer-orders", "handled-commands"])
@pytest.mark.parametrize("limit", [1, 7, 30, 1000])
async def test_pages_of_a_table_hold_every_row_once(client: httpx.AsyncClient, table: str, limit: int) -> None:
    seen: list[Any] = []
    cursor = ""
    while True:
        page = await find(client, f"/tables/{table}", limit=limit, cursor=cursor)
        assert len(page["items"]) <= limit
        seen += [json.dumps(item["key"]) for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = page["next_cursor"]
    assert len(seen) == len(set(seen)) == 30


@pytest.mark.usefixtures("thirty_orders")
@pytest.mark.parametrize("table", ["orders", "order-history", "customer-orders", "handled-commands", "positions"])
async def test_every_listed_row_can_be_asked_for_by_its_key(client: httpx.AsyncClient, table: str) -> None:
    for item in (await find(client, f"/tables/{table}", limit=5))["items"]:
        key = item.get("key_id", item["key"])
        assert await find(client, f"/tables/{table}/{key}", partition=item["partition"]) == item["row"]
        if table != "positions":  # every partition has its own positions
            assert await find(client, f"/tables/{table}/{key}") == item["row"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/tables/nothing", 404),
        ("/tables/nothing/key", 404),
        ("/tables/orders/nothing", 404),
        ("/tables/order-history/nothing", 404),
        ("/tables/customer-orders/AAAA", 404),
        ("/tables/timers/%FF", 404),
        ("/tables/orders?limit=0", 422),
        ("/tables/orders?cursor=x", 422),
        ("/tables/orders?cursor=%C3%BC", 422),
        ("/tables/orders/key?partition=2", 422),
        ("/internal/queries/sizes/2?asked={}", 503),
        ("/internal/queries/sizes/x?asked={}", 404),
        ("/topics/nothing/records", 404),
        ("/topics/order-events/records?offset=1", 422),
        ("/topics/order-events/records?partition=2", 422),
        ("/topics/order-events/records?partition=0&offset=-1", 422),
    ],
)
async def test_what_is_not_there_is_a_problem(client: httpx.AsyncClient, path: str, status: int) -> None:
    check_problem(await client.get(path), status)


# ---- topics


@pytest.mark.usefixtures("thirty_orders")
async def test_topics_are_listed_with_the_bounds_of_their_partitions(client: httpx.AsyncClient) -> None:
    topics = {topic["name"]: topic for topic in (await find(client, "/topics"))["items"]}
    assert sum(part["end_offset"] - part["start_offset"] for part in topics["order-events"]["partitions"]) == 30
    assert {"order-commands", "dead-letters", "integration-events"} <= set(topics)
    assert any(name.endswith("-orders-changelog") for name in topics)


@pytest.mark.usefixtures("thirty_orders")
async def test_records_can_be_followed_from_an_offset(client: httpx.AsyncClient) -> None:
    keys: list[str] = []
    for partition in range(2):
        offset, end = 0, 1
        while offset < end:
            page = await find(client, "/topics/order-events/records", partition=partition, offset=offset, limit=4)
            assert len(page["items"]) <= 4
            keys += [record["key"] for record in page["items"]]
            assert all(record["value"]["aggregateId"] == record["key"] for record in page["items"])
            offset, end = page["next_offset"], page["end_offset"]
        beyond = await find(client, "/topics/order-events/records", partition=partition, offset=end)
        assert (beyond["items"], beyond["next_offset"]) == ([], end)
    assert sorted(keys) == [f"o-{n:02}" for n in range(30)]


async def test_without_an_offset_the_newest_records_come(client: httpx.AsyncClient) -> None:
    for n in range(5):
        await find(client, f"/orders/o-{n}", after=await place(client, order(order_id=f"o-{n}")))
    newest = await find(client, "/topics/order-events/records", limit=3)
    assert [record["key"] for record in newest["items"]] == ["o-2", "o-3", "o-4"]
    partition = newest["items"][-1]["partition"]
    (last,) = (await find(client, "/topics/order-events/records", partition=partition, limit=1))["items"]
    assert last["key"] == "o-4"


async def test_a_record_that_is_not_json_is_shown_byte_for_byte(app: EngineApp, client: httpx.AsyncClient) -> None:
    await publish(app, ORDER_COMMANDS, "o-1", b"\xffnot json")
    await wait_until(lambda: app.engine.metrics.dead_letters == 1, "it is a dead letter")
    query = {"after": await place(client, order(order_id="o-1"))}
    await find(client, "/orders/o-1", **query)
    (letter,) = (await find(client, "/topics/dead-letters/records"))["items"]
    assert (letter["value"], letter["value_base64"]) == (None, "/25vdCBqc29u")
    assert letter["headers"]["original_topic"] == "order-commands"


# ---- doctor


async def test_the_doctor_finds_a_healthy_system_healthy(client: httpx.AsyncClient) -> None:
    checks = await find(client, "/doctor")
    assert {"broker", "topics", "data folder", "partitions"} <= {check["check"] for check in checks}
    assert [check for check in checks if not check["ok"]] == []


async def test_the_doctor_says_what_to_do(app: EngineApp, client: httpx.AsyncClient) -> None:
    await hold_up(app)
    await app.engine.broker.stop()
    checks = {check["check"]: check for check in await find(client, "/doctor")}
    assert not checks["broker"]["ok"]
    assert checks["broker"]["advice"]
    assert not checks["partitions"]["ok"]
    await app.engine.broker.start()


# ---- health


async def test_a_worker_is_ready_when_its_partitions_are(app: EngineApp, client: httpx.AsyncClient) -> None:
    assert (await find(client, "/readyz"))["partitions"] == [0, 1]
    await hold_up(app)
    check_unavailable(await client.get("/readyz"))
    await find(client, "/healthz")
    await go_on(app)
    await find(client, "/readyz")


async def test_a_worker_that_cannot_go_on_by_itself_is_not_healthy(app: EngineApp, client: httpx.AsyncClient) -> None:
    app.engine.fatal = "the data folder cannot be written"
    assert check_problem(await client.get("/healthz"), 503)["detail"] == "the data folder cannot be written"


async def test_a_fault_is_named_by_health_doctor_and_metrics_until_it_is_over(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    fault = Fault("lost records", "order-commands/1: 5 records are gone", "accept their loss", partition=1)
    app.engine.faults.report(("lost", 1), fault)
    problem = check_problem(await client.get("/healthz"), 503)
    assert problem["detail"] == "order-commands/1: 5 records are gone: accept their loss"
    assert problem["faults"] == [
        {
            "kind": "lost records",
            "detail": "order-commands/1: 5 records are gone",
            "advice": "accept their loss",
            "partition": 1,
        }
    ]
    checks = {check["check"]: check for check in await find(client, "/doctor")}
    assert checks["lost records"] == {
        "check": "lost records",
        "ok": False,
        "detail": fault.detail,
        "advice": fault.advice,
    }
    assert 'open_faults{kind="lost records"} 1.0' in (await client.get("/metrics")).text

    app.engine.faults.clear(("lost", 1))
    await find(client, "/healthz")
    checks = {check["check"]: check for check in await find(client, "/doctor")}
    assert "lost records" not in checks
    assert checks["faults"]["ok"]
    assert "open_faults{" not in (await client.get("/metrics")).text


@pytest.mark.usefixtures("thirty_orders")
async def test_metrics_are_prometheus_text_with_lag_and_partitions(app: EngineApp, client: httpx.AsyncClient) -> None:
    answer = await client.get("/metrics")
    assert answer.headers["Content-Type"].startswith("text/plain; version=")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {"events_processed", "event_processing_seconds", "commits", "dead_letters"} <= set(families)
    lag = {tuple(sample.labels.values()): sample.value for sample in families["consumer_lag_records"].samples}
    assert len(lag) == 2 * len(app.engine.agents)
    assert set(lag.values()) == {0.0}
    assert {sample.value for sample in families["consumer_lag_seconds"].samples} == {0.0}
    assert [sample.value for sample in families["partitions_owned"].samples] == [2.0]
    assert [sample.value for sample in families["partitions_restoring"].samples] == [0.0]


async def test_an_agent_that_is_held_up_has_lag(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    topic, released = Topic("held-up", "records that wait"), asyncio.Event()
    held_up, process = Service("held-up"), Dispatch.process
    held_up.agent("wait-for-release", topic).on_record(lambda record, work: "value")

    async def wait_for_release(dispatch: Dispatch, fetched: Fetched, agent: str, handle: RecordHandler) -> None:
        await released.wait()
        await process(dispatch, fetched, agent, handle)

    monkeypatch.setattr(Dispatch, "process", wait_for_release)

    async def lags(client: httpx.AsyncClient) -> tuple[float, float]:
        families = text_string_to_metric_families((await client.get("/metrics")).text)
        samples = [sample for family in families for sample in family.samples if "agent" in sample.labels]
        records = sum(sample.value for sample in samples if sample.name == "consumer_lag_records")
        return records, max(sample.value for sample in samples if sample.name == "consumer_lag_seconds")

    settings = make_settings("memory://", tmp_path)
    async with running(settings, [held_up, health.service]) as app, client_of(app) as client:
        await publish(app, topic, "key", b"1", b"2", b"3")
        number = app.engine.partition_for(b"key")
        await wait_until(lambda: app.engine.tasks[number].backlog.queued["held-up"], "the records are fetched")
        await asyncio.sleep(0.01)
        records, seconds = await lags(client)
        assert records == 3
        assert seconds >= 0.01
        released.set()
        await caught_up(app)
        assert await lags(client) == (0, 0)
