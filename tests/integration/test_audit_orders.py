"""The audit of orders on the real logs: it finds what differs, says where, and finds nothing where all is well."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import msgspec
import pytest
import pytest_asyncio
from click.testing import CliRunner, Result

from cli import main
from engine.faust.app import EngineApp
from engine.health.audits import AUDITS, LAST
from engine.log.embedded.maintenance import retain_partition
from streams.topics import ORDER_EVENTS
from tables.audit.audits import Audits
from tables.audit.nightly import NightlyAudits
from tables.orders import ORDER_HISTORY, ORDERS
from tests.apps import KAFKA, at_rest, make_settings, read_topic, running, wait_until
from tests.integration.audits import audit, change, damage, differences, forge
from tests.integration.web import check_problem, client_of, find, order, own_broker_url


@pytest_asyncio.fixture(params=["embedded"])
async def app(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[EngineApp]:
    """Run the whole application."""
    async with running(make_settings(own_broker_url(request), tmp_path, partitions=2)) as app:
        yield app


@pytest_asyncio.fixture
async def client(app: EngineApp) -> AsyncIterator[httpx.AsyncClient]:
    """Give a client, once twenty orders are placed, some confirmed, cancelled, refused or shipped."""
    async with client_of(app) as client:
        lines = [json.dumps(order(f"c-{n % 4}", f"o-{n}", country="France")) for n in range(20)]
        assert (await client.post("/orders/batch", content="\n".join(lines))).json()["accepted"] == 20
        for path in (
            "o-0/confirm",
            "o-1/cancel",
            "o-2/confirm",
            "o-2/cancel",
            "o-3/confirm",
            "o-3/ship",
            "o-1/confirm",
        ):
            assert (await client.post(f"/orders/{path}")).status_code == 202
        assert (await client.post("/orders/o-unknown/cancel")).status_code == 202
        await at_rest(app)
        yield client


async def events_of(app: EngineApp, order_id: str) -> list[tuple[int, bytes]]:
    """Offsets and values of an order's events."""
    records = await read_topic(app, ORDER_EVENTS)
    return [(record.offset, record.value or b"") for record in records if record.key == order_id.encode()]


async def test_nothing_is_found_where_all_is_well(app: EngineApp, client: httpx.AsyncClient) -> None:
    reports = await audit(client, 2)
    assert [report["state"] for report in reports] == ["clean", "clean"], reports
    assert sum(report["records"] for report in reports) >= 28
    assert await find(client, "/audit/orders/o-2") == {
        "order_id": "o-2", "agrees": True, "records": 10, "rows": 4, "differences": [], "unproven": [],
    }  # fmt: skip
    check_problem(await client.get("/audit/orders/o-nowhere"), 404)
    check_problem(await client.get("/audit/partitions/7"), 404)


async def test_a_row_changed_by_hand_is_found(app: EngineApp, client: httpx.AsyncClient) -> None:
    await change(app, ORDERS, "o-0", "o-0", status="cancelled")
    ((offset, _), (last, _)) = await events_of(app, "o-0")
    assert await differences(app, client) == [("row_differs", "orders", "o-0", "order-events", last)]
    found = await find(client, "/audit/orders/o-0")
    assert found["agrees"] is False
    assert found["differences"][0]["detail"] == 'status is "cancelled", should be "confirmed"'
    assert found["differences"][0]["offset"] == last > offset


async def test_a_row_without_its_events_and_events_without_their_row_are_found(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    row = app.engine.task(app.engine.partition_for(b"o-4")).read(ORDERS, "o-4")
    assert row is not None
    await damage(app, ORDERS, "o-4", "o-4", None)
    await damage(app, ORDERS, "o-ghost", "o-ghost", msgspec.structs.replace(row, order_id="o-ghost"))
    ((offset, _),) = await events_of(app, "o-4")
    assert sorted(await differences(app, client), key=str) == [
        ("row_missing", "orders", "o-4", "order-events", offset),
        ("row_unfounded", "orders", "o-ghost", "order-events", None),
    ]
    assert (await find(client, "/audit/orders/o-ghost"))["agrees"] is False
    assert (await find(client, "/audit/orders/o-4"))["agrees"] is False


async def test_a_missing_event_is_found(app: EngineApp, client: httpx.AsyncClient) -> None:
    """Rows as an event would have left them that the topic has lost."""
    ((offset, placed),) = await events_of(app, "o-5")
    await damage(app, ORDER_HISTORY, "o-5", ("o-5", 2), msgspec.Raw(placed))
    await change(app, ORDERS, "o-5", "o-5", version=2, status="confirmed")
    assert sorted(await differences(app, client)) == [
        ("row_differs", "orders", "o-5", "order-events", offset),
        ("row_unfounded", "order-history", "o-5, 2", "order-events", offset),
    ]


@pytest.mark.parametrize("app", ["embedded", KAFKA], indirect=True)
async def test_an_event_that_is_there_twice_is_found(app: EngineApp, client: httpx.AsyncClient) -> None:
    ((_, placed),) = await events_of(app, "o-6")
    (offset,) = await forge(app, ORDER_EVENTS, "o-6", placed)
    await at_rest(app)
    assert await differences(app, client) == [("event_repeated", None, None, "order-events", offset)]


async def test_a_gap_in_the_versions_is_found(app: EngineApp, client: httpx.AsyncClient) -> None:
    (_, (_, confirmed)) = await events_of(app, "o-0")
    later = json.loads(confirmed) | {"aggregateVersion": 4, "eventId": "another"}
    (offset,) = await forge(app, ORDER_EVENTS, "o-0", json.dumps(later).encode())
    await at_rest(app)
    found = await differences(app, client)
    assert ("version_gap", None, None, "order-events", offset) in found
    assert ("row_differs", "orders", "o-0", "order-events", offset) in found
    number, customer = app.engine.partition_for(b"o-0"), app.engine.partition_for(b"c-0")
    (missing,) = [f for f in (await find(client, "/audit/orders/o-0"))["differences"] if f["kind"] == "event_missing"]
    assert (missing["topic"], missing["partition"]) == ("customer-order-events", customer)
    assert missing["detail"] == f"the event order-events/{number}@{offset} was not passed on to its customer"


async def test_an_id_that_does_not_follow_from_its_cause_and_a_wrong_history_are_found(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    ((_, placed),) = await events_of(app, "o-7")
    forged = json.loads(placed.replace(b"o-7", b"o-new"))
    (offset,) = await forge(app, ORDER_EVENTS, "o-new", json.dumps(forged | {"eventId": "another"}).encode())
    await at_rest(app)
    assert sorted(await differences(app, client), key=str) == [
        ("id_differs", None, None, "order-events", offset),
        ("row_missing", "order-history", "o-new, 1", "order-events", offset),
        ("row_missing", "orders", "o-new", "order-events", offset),
    ]


@pytest.mark.parametrize("app", ["embedded", KAFKA], indirect=True)
async def test_nothing_is_found_while_orders_come_in(app: EngineApp, client: httpx.AsyncClient) -> None:
    over = asyncio.Event()

    async def load() -> int:
        count = 0
        while not over.is_set():
            lines = [json.dumps(order(f"c-{n % 4}", f"load-{count}-{n}")) for n in range(50)]
            assert (await client.post("/orders/batch", content="\n".join(lines))).status_code == 202
            assert (await client.post(f"/orders/load-{count}-0/confirm")).status_code == 202
            count += 1
        return count

    running_load = asyncio.create_task(load())
    records = []
    for _ in range(4):
        reports = await audit(client, 2)
        assert [report["differences"] for report in reports] == [[], []]
        assert [report["state"] for report in reports] == ["clean", "clean"]
        records.append(sum(report["records"] for report in reports))
    over.set()
    assert await running_load
    assert records == sorted(set(records)), "orders came in between the audits"


async def command(app: EngineApp, *arguments: str) -> Result:
    """Run `orders audit` beside the application."""
    given = [*arguments, "--url", app.engine.settings.public_url]
    return await asyncio.to_thread(CliRunner().invoke, main, ["audit", *given])


async def test_the_command_prints_a_line_for_each_difference_and_exits_with_1(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    clean = await command(app)
    assert (clean.exit_code, clean.stdout.splitlines()[-1][-9:]) == (0, "all agree"), clean.output
    assert (await command(app, "--order", "o-2")).exit_code == 0
    await change(app, ORDERS, "o-0", "o-0", item_count=7)
    number, ((_, _), (last, _)) = app.engine.partition_for(b"o-0"), await events_of(app, "o-0")
    for arguments in ((), ("--order", "o-0")):
        found = await command(app, *arguments)
        assert found.exit_code == 1, found.output
        assert found.stdout.splitlines()[0] == (
            f"order-events/{number}@{last} orders[o-0]: item_count is 7, should be 2"
        )
    as_json = await command(app, "--json")
    assert as_json.exit_code == 1
    (difference,) = [found for part in json.loads(as_json.stdout)["partitions"] for found in part["differences"]]
    assert (difference["topic"], difference["partition"], difference["offset"]) == ("order-events", number, last)


async def test_the_command_exits_with_2_when_it_cannot_be_proven(app: EngineApp, client: httpx.AsyncClient) -> None:
    unknown = await command(app, "--order", "o-nowhere")
    assert (unknown.exit_code, "no order o-nowhere" in unknown.output) == (2, True)
    log, number = app.engine.broker.log, app.engine.partition_for(b"o-0")  # type: ignore[attr-defined]
    topic = log._topic(ORDER_EVENTS.name, number)
    for _ in retain_partition(log._storage, topic, number, 0, 2**62):  # as an operator's wrong setting would
        pass
    for arguments in ((), ("--order", "o-0")):
        found = await command(app, *arguments)
        assert found.exit_code == 2, found.output
        assert f"order-events/{number} begins at offset" in found.stdout
        assert "its oldest events were removed" in found.stdout
    nobody = await asyncio.to_thread(CliRunner().invoke, main, ["audit", "--url", "http://127.0.0.1:9"])
    assert nobody.exit_code == 2


async def test_differences_are_a_fault_until_an_audit_finds_none(app: EngineApp, client: httpx.AsyncClient) -> None:
    await change(app, ORDERS, "o-0", "o-0", item_count=7)
    await audit(client, 2)
    problem = check_problem(await client.get("/healthz"), 503)
    assert [fault["kind"] for fault in problem["faults"]] == ["audit"]
    assert "orders[o-0]: item_count is 7, should be 2" in problem["detail"]
    await change(app, ORDERS, "o-0", "o-0", item_count=2)
    await audit(client, 2)
    assert await find(client, "/healthz") == {"status": "ok"}


async def test_the_nightly_audit_finds_what_differs_and_the_doctor_tells_it(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    """With a clock that the test sets; what was found is known after a restart, too."""
    now = datetime(2026, 11, 30, 2, 59, tzinfo=UTC)
    engine = app.engine
    engine.settings = engine.settings.model_copy(update={"audit_at": "03:00"})
    nightly = NightlyAudits(engine, Audits(engine), lambda: now)
    nightly.look()
    now += timedelta(hours=25)  # beyond a slot that came while it ran
    await change(app, ORDERS, "o-0", "o-0", item_count=7)
    nightly.look()
    await wait_until(engine.faults.open, "the audit has found it")
    (fault,) = engine.faults.open()
    assert (fault.kind, fault.partition) == ("audit", engine.partition_for(b"o-0"))
    other = engine.task(1 - engine.partition_for(b"o-0"))
    await wait_until(lambda: other.read(AUDITS, LAST), "the other partition is audited, too")
    checks = {check["check"]: check for check in await find(client, "/doctor")}
    assert "orders[o-0]: item_count is 7, should be 2" in checks["audit"]["detail"]
    assert f"partition {fault.partition} differs at" in checks["last audit"]["detail"]
    assert f"partition {other.number} clean at" in checks["last audit"]["detail"]
    engine.faults.clear(("audit", engine.partition_for(b"o-0")))
    NightlyAudits(engine, Audits(engine), lambda: now).look()  # as after a restart
    assert engine.faults.open() == (fault,)
