"""Rebuilding tables over HTTP and from the command line: any worker may be asked, and nobody who reads notices."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import pytest_asyncio
from click.testing import CliRunner

from agents.analytics import TABLES as ANALYTICS
from domain.analytics import Figures
from engine.cli.rebuild import rebuild as rebuild_command
from engine.cli.rebuild import text_of
from engine.declare.agent import Projection
from engine.declare.table import Table
from engine.declare.timers import TIMERS
from engine.faust.app import EngineApp
from engine.rebuilds import run as rebuild_run
from streams.topics import ORDER_EVENTS
from tables.analytics import ANALYTICS_TOTALS
from tables.customers import CUSTOMERS, Customer
from tables.orders.customer_orders import CUSTOMER_ORDERS, CustomerOrderKey
from tables.orders.index import ORDERS_BY_CORRELATION, ORDERS_BY_TIME
from tests.apps import at_rest, make_settings, running, stop, wait_until
from tests.e2e.processes import ORDERS, Site
from tests.integration.test_web_routing import new_worker, settled, three_workers
from tests.integration.web import check_problem, client_of, find, order
from tests.kafka import KafkaBroker

PROJECTIONS = {
    *(table.name for table in (*ANALYTICS, ORDERS_BY_TIME, ORDERS_BY_CORRELATION)),
    "customer-orders",
    "customers",
    "reconciliation-orders",
    "reconciliation-payments",
    "reconciliation-stock",
}


@pytest_asyncio.fixture
async def forty_orders(client: httpx.AsyncClient, app: EngineApp) -> None:
    """Place forty orders of four customers; confirm some, cancel some."""
    await place_many(client, 40)
    await at_rest(app)


async def place_many(client: httpx.AsyncClient, count: int) -> None:
    lines = [
        json.dumps(order(f"c-{n % 4}", f"o-{n:04}", country="France", email="a@example.com")) for n in range(count)
    ]
    answer = await client.post("/orders/batch", content="\n".join(lines))
    assert answer.json()["accepted"] == count, answer.text
    for n in range(0, count, 4):
        assert (await client.post(f"/orders/o-{n:04}/confirm")).status_code == 202
        assert (await client.post(f"/orders/o-{n + 1:04}/cancel")).status_code == 202


async def rebuild(client: httpx.AsyncClient, table: str, **body: Any) -> Mapping[str, Any]:
    """Rebuild a table, and return how it ended."""
    answer = await client.post(f"/tables/{table}/rebuild", json=body)
    assert answer.status_code == 202, answer.text
    return await over(client, table, answer.json()["id"])


async def over(client: httpx.AsyncClient, table: str, id: str) -> Mapping[str, Any]:
    """Wait until a rebuild has ended, whoever owns the partitions meanwhile."""
    async with asyncio.timeout(90):
        while True:
            answer = await client.get(f"/tables/{table}/rebuild")
            if answer.status_code == 200 and answer.json()["state"] != "running":
                assert answer.json()["id"] == id
                return answer.json()  # type: ignore[no-any-return]
            assert answer.status_code in (200, 503), answer.text
            await asyncio.sleep(0.02)


async def replace(app: EngineApp, table: Table[Any, Any], by: str, key: Any, new: Any) -> None:
    """Replace a row in the partition of the key `by`, as a mistake would have."""
    task = app.engine.task(app.engine.partition_for(by.encode()))
    work = task.work.open()
    work.put(table, key, new)
    work.release()
    task.work.commit_soon()
    await wait_until(lambda: task.read(table, key) == new, "the row is damaged")


async def ends(app: EngineApp) -> dict[tuple[str, int], int]:
    """Where every topic ends, without changelogs."""
    broker, numbers = app.engine.broker, range(app.engine.settings.partitions)
    return {(name, number): await broker.end_offset(name, number) for name in app.engine.topics for number in numbers}


async def ends_at_rest(app: EngineApp) -> dict[tuple[str, int], int]:
    """Where every topic ends once nothing leads to anything else any more."""
    before: dict[tuple[str, int], int] = {}
    while (now := await ends(app)) != before:
        before = now
        await at_rest(app)
    return before


@pytest.mark.usefixtures("forty_orders")
async def test_every_projection_is_rebuilt_without_a_difference_and_without_an_effect(
    app: EngineApp, client: httpx.AsyncClient
) -> None:
    before = await ends_at_rest(app)
    mails = sorted(app.engine.settings.data_dir.rglob("mail/**/*"))
    timers = [list(task.scan(TIMERS)) for task in app.engine.tasks.values()]
    assert mails
    for table in sorted(PROJECTIONS):
        view = await rebuild(client, table)
        assert (view["state"], view["errors"], view["table"]) == ("done", [], table)
        assert table in view["tables"]
        assert [view["differences"][name] for name in ("added", "changed", "removed")] == [0, 0, 0]
        assert view["records_done"] == view["records_total"]
        assert view["suppressed"] == 0
    assert await ends_at_rest(app) == before
    assert sorted(app.engine.settings.data_dir.rglob("mail/**/*")) == mails
    assert [list(task.scan(TIMERS)) for task in app.engine.tasks.values()] == timers
    metrics = (await client.get("/metrics")).text
    assert 'rebuild_progress{projection="project-customers"} 1.0' in metrics


@pytest.mark.usefixtures("forty_orders")
async def test_damage_is_shown_by_a_check_and_mended_by_a_rebuild(app: EngineApp, client: httpx.AsyncClient) -> None:
    wanted = await find(client, "/customers/c-0"), await find(client, "/analytics/summary")
    await replace(app, CUSTOMERS, "c-0", "c-0", Customer("c-0", order_count=77))
    await replace(app, CUSTOMERS, "c-9", "c-9", Customer("c-9", order_count=1))
    await replace(app, ANALYTICS_TOTALS, "o-0000", "USD", Figures(placed_count=1))
    view = await rebuild(client, "customers", check=True)
    assert (view["state"], view["check"]) == ("done", True)
    assert view["differences"]["changed"] == 1
    assert view["differences"]["removed"] == 1
    samples = {sample["key"]: sample for sample in view["differences"]["samples"]}
    assert samples["c-0"]["before"]["order_count"] == 77
    assert samples["c-0"]["after"]["order_count"] == 10
    assert samples["c-9"]["after"] is None
    assert (await find(client, "/customers/c-0"))["order_count"] == 77
    await rebuild(client, "customers")
    check_problem(await client.get("/customers/c-9"), 404)
    view = await rebuild(client, "analytics-days")  # its whole group
    assert view["tables"] == [table.name for table in ANALYTICS]
    assert (view["differences"]["changed"], view["differences"]["samples"][0]["table"]) == (1, "analytics-totals")
    assert (await find(client, "/customers/c-0"), await find(client, "/analytics/summary")) == wanted


async def test_tables_that_decisions_rest_on_are_refused(app: EngineApp, client: httpx.AsyncClient) -> None:
    tables = app.engine.tables.keys() - PROJECTIONS
    assert {
        "orders",
        "order-history",
        "sagas",
        "payments",
        "stock",
        "timers",
        "dead-letters",
        "notifications",
    } <= tables
    for table in sorted(tables):
        problem = check_problem(await client.post(f"/tables/{table}/rebuild"), 409)
        assert problem["reason"] == "not_a_projection"
        assert set(problem["tables"]) == PROJECTIONS


def begin(id: str, projection: str = "project-customers", partition: str = "0") -> str:
    """The path by which another worker begins a rebuild in one partition."""
    asked = json.dumps({"projection": projection, "id": id, "check": False})
    return f"/internal/queries/begin-rebuild/{partition}?{urlencode({'asked': asked})}"


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/tables/nothing/rebuild", "", 404),
        ("GET", "/tables/nothing/rebuild", "", 404),
        ("GET", "/tables/customers/rebuild", "", 404),
        ("DELETE", "/tables/customers/rebuild", "", 404),
        ("POST", "/tables/customers/rebuild", "[]", 422),
        ("POST", "/tables/customers/rebuild", '{"dry": true}', 422),
        ("POST", "/tables/customers/rebuild", '{"check": 1}', 422),
        ("POST", "/tables/customers/rebuild", "\ud800".encode("utf-8", "surrogatepass"), 422),
        ("PUT", "/tables/customers/rebuild", "", 405),
        ("POST", begin("x", "nobody"), "", 404),
        ("POST", begin("x", partition="x"), "", 404),
        ("POST", "/internal/queries/begin-rebuild/0", "", 400),
        ("GET", begin("x"), "", 404),
        ("POST", begin("x", partition="99"), "", 503),
    ],
)
async def test_what_cannot_be_done_is_a_problem(
    client: httpx.AsyncClient, method: str, path: str, body: str | bytes, status: int
) -> None:
    check_problem(await client.request(method, path, content=body), status)


async def test_a_second_rebuild_of_the_same_tables_is_refused_and_the_first_can_be_given_up(
    tmp_path: Path,
) -> None:
    async with running(make_settings("memory://", tmp_path, partitions=2)) as app, client_of(app) as client:
        await place_many(client, 40)
        await at_rest(app)
        async with app.engine.rebuild_turns:  # so it stays under way
            answers = await asyncio.gather(*(client.post("/tables/analytics-days/rebuild") for _ in range(5)))
            assert sorted(answer.status_code for answer in answers) == [202, 409, 409, 409, 409]
            (begun,) = (answer.json() for answer in answers if answer.status_code == 202)
            problem = check_problem(await client.post("/tables/analytics-products/rebuild", json={"check": True}), 409)
            assert (problem["reason"], problem["id"]) == ("under_way", begun["id"])
            view = await find(client, "/tables/analytics-totals/rebuild")
            assert (view["state"], view["records_done"]) == ("running", 0)
            assert view["records_total"] == 60
            other = await client.post("/tables/customers/rebuild")
            assert other.status_code == 202
            assert (await client.delete("/tables/analytics-days/rebuild")).json()["state"] == "cancelled"
        assert (await over(client, "customers", other.json()["id"]))["state"] == "done"
        assert (await rebuild(client, "analytics-days"))["state"] == "done"


async def test_one_that_was_not_begun_everywhere_is_completed_by_asking_again(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path, partitions=2)) as app, client_of(app) as client:
        await place_many(client, 40)
        await at_rest(app)
        async with app.engine.rebuild_turns:
            answer = await client.post(begin("half"))
            assert answer.json()["rebuild"]["id"] == "half"
            view = await find(client, "/tables/customers/rebuild")
            assert [part["state"] for part in view["partitions"]] == ["running", "incomplete"]
            assert view["state"] == "incomplete"
            check_problem(await client.post("/tables/customers/rebuild", json={"check": True}), 409)
            answer = await client.post("/tables/customers/rebuild")
            assert (answer.status_code, answer.json()["id"]) == (202, "half")
        assert (await over(client, "customers", "half"))["state"] == "done"


async def test_a_token_guards_it(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path, api_token="secret")) as app:
        async with client_of(app) as stranger:
            check_problem(await stranger.post("/tables/customers/rebuild"), 401)
            check_problem(await stranger.delete("/tables/customers/rebuild"), 401)
        async with client_of(app, Authorization="Bearer secret") as client:
            assert (await rebuild(client, "customers"))["state"] == "done"


# ---- three workers


@pytest.mark.kafka
async def test_a_rebuild_survives_partitions_that_move_and_readers_do_not_notice(
    private_kafka_broker: KafkaBroker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rebuild_run, "SLICE_S", 0.0)  # a record at a time
    over_yet = False
    seen: list[Any] = []

    async def read_on(client: httpx.AsyncClient) -> None:
        while not over_yet:
            for path in ("/customers/c-0", "/customers/c-1/orders?limit=200", "/analytics/summary"):
                answer = await client.get(path)
                assert answer.status_code in (200, 503), answer.text  # 503 while a partition moves
                if answer.status_code == 200:
                    seen.append((path, answer.text))
            await asyncio.sleep(0.01)

    async with three_workers(private_kafka_broker, tmp_path, api_token="secret") as (apps, clients):
        for client in clients:
            client.headers["Authorization"] = "Bearer secret"
        await place_many(clients[0], 400)
        await everything_is_projected(apps)
        for app in apps:
            for task in app.engine.tasks.values():  # one wrong row in each partition
                key = CustomerOrderKey("nobody", (await a_time(clients[0])), f"o-{task.number}")
                some = next(iter(task.scan(CUSTOMER_ORDERS)), None)
                if some is not None:
                    task.work.open().put(CUSTOMER_ORDERS, key, some[1])
                    task.work.open().release()
                    task.work.commit_soon()
        readers = [asyncio.create_task(read_on(client)) for client in clients[:2]]
        answer = await clients[0].post("/tables/customer-orders/rebuild")
        assert answer.status_code == 202, answer.text
        begun = await clients[1].post("/tables/customers/rebuild")
        assert begun.status_code == 202
        await wait_until(lambda: is_on_its_way(apps[2]), "a rebuild is on its way on the worker that will stop")
        await stop(apps[2])
        newcomer = new_worker(private_kafka_broker, tmp_path / "newcomer", api_token="secret")
        await newcomer.start()
        try:
            lists = await over(clients[1], "customer-orders", answer.json()["id"])
            customers = await over(clients[0], "customers", begun.json()["id"])
            await settled([*apps[:2], newcomer])
        finally:
            over_yet = True
            await stop(newcomer)
        await asyncio.gather(*readers)
    assert (lists["state"], customers["state"]) == ("done", "done")
    assert [lists["differences"][name] for name in ("added", "changed")] == [0, 0]
    assert lists["differences"]["removed"] > 0
    assert lists["records"]["applied"] == customers["records"]["applied"] == 600
    assert [customers["differences"][name] for name in ("added", "changed", "removed")] == [0, 0, 0]
    for path in {path for path, _ in seen}:
        assert len({text for of, text in seen if of == path}) == 1, path


def is_on_its_way(app: EngineApp) -> bool:
    return any(0 < progress.done < progress.total for task in app.engine.tasks.values()
               for _, progress in task.rebuilds.all_progress())  # fmt: skip


async def everything_is_projected(apps: list[EngineApp]) -> None:
    """Wait until no agent of any worker is behind."""
    for app in apps:
        for number, task in app.engine.tasks.items():
            for agent, topic in app.engine.agents.items():
                end = await app.engine.broker.end_offset(topic.name, number)
                await wait_until(
                    lambda task=task, agent=agent, topic=topic, end=end: task.reached(agent, topic.name) >= end,  # type: ignore[misc]
                    f"{agent} has reached the end of {topic.name}/{number}",
                )


async def a_time(client: httpx.AsyncClient) -> Any:
    """The business time of some order."""
    from datetime import datetime

    return datetime.fromisoformat((await find(client, "/orders/o-0000"))["created_at"])


# ---- the command line


class CommandLine:
    """`orders rebuild` beside a worker in this process."""

    def __init__(self, app: EngineApp, folder: Path) -> None:
        self.app = app
        self._folder = folder
        self._site = Site(folder, app.engine.settings.web_port)

    async def run(self, *arguments: str, status: int = 0) -> tuple[str, str]:
        """What a command prints to stdout and stderr."""
        done = await asyncio.to_thread(
            subprocess.run,
            [*ORDERS, "rebuild", *arguments],
            env=self._site.environment({}),
            cwd=self._folder,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout, done.stderr


@pytest_asyncio.fixture
async def line(tmp_path: Path) -> AsyncIterator[CommandLine]:
    async with running(make_settings("memory://", tmp_path, partitions=2)) as app, client_of(app) as client:
        await place_many(client, 40)
        await at_rest(app)
        yield CommandLine(app, tmp_path)


async def test_the_command_shows_what_differs_and_mends_it(line: CommandLine) -> None:
    await replace(line.app, CUSTOMERS, "c-0", "c-0", Customer("c-0", order_count=77))
    said, steps = await line.run("customers", "--check")
    assert "rebuilding customers (60)" in steps
    assert said.startswith("customers: checked; nothing was replaced\n")
    assert "rows that differ: 1 of 4 (1 changed, 0 missing, 0 superfluous)" in said
    assert '"order_count":77' in said
    said, _ = await line.run("customers")
    assert said.startswith("customers: rebuilt; the rows that differed are replaced\n")
    assert "  records of customer-order-events: 60 handled\n" in said
    view = json.loads((await line.run("customers", "--follow", "--json"))[0])
    assert (view["state"], view["differences"]["changed"]) == ("done", 1)


async def test_the_command_says_why_it_cannot(line: CommandLine) -> None:
    _, said = await line.run("orders", status=1)
    assert "table orders cannot be rebuilt" in said
    assert "customers" in said
    async with line.app.engine.rebuild_turns:
        async with client_of(line.app) as client:
            await client.post("/tables/customers/rebuild")
        assert "is being rebuilt already" in (await line.run("customers", status=1))[1]
        assert (await line.run("customers", "--cancel"))[0].startswith("customers: the rebuild was given up\n")


def test_options_that_exclude_each_other_are_refused() -> None:
    done = CliRunner().invoke(rebuild_command, ["customers", "--check", "--follow"])
    assert (done.exit_code, "exclude each other" in done.output) == (2, True)


async def test_the_command_fails_when_the_rebuild_does(line: CommandLine) -> None:
    engine = line.app.engine
    declared = engine.projections["project-customers"]
    failing = Projection(declared.name, declared.topic, *declared.tables)
    failing.on_record(_fail)
    engine.projections = {**engine.projections, declared.name: failing}
    said, _ = await line.run("customers", status=1)
    assert "the rebuild failed" in said
    assert "ZeroDivisionError" in said


def _fail(record: object, work: object) -> str:
    raise ZeroDivisionError("once")


def test_the_result_names_what_was_left_out() -> None:
    view = {
        "tables": ["t"], "state": "done", "check": False, "errors": [], "topic": ORDER_EVENTS.name, "restarts": 2,
        "records": {"applied": 5, "waiting": 1, "discarded": 2, "unreadable": 3},
        "differences": {"added": 0, "changed": 0, "removed": 0, "rows": 5, "are_more": False, "samples": []},
    }  # fmt: skip
    said = text_of(view)
    assert "5 handled; 1 wait or are dead letters" in said
    assert "2 were discarded" in said
    assert "3 cannot be read" in said
    assert "begun anew 2 times" in said
