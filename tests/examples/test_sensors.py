"""The sensors in this process: exact figures, one alert for each overheating, and all that the engine brings along."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from decimal import Decimal
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.faust.app import EngineApp
from examples.sensors import app as sensors
from examples.sensors.app import READING_COMMANDS, Settings, create_app
from tests.apps import (
    DURABLE_TRANSPORTS,
    TRANSPORTS,
    UNOWNED,
    at_rest,
    broker_url,
    crash,
    publish,
    started,
    stop,
    unique,
    wait_until,
)
from tests.examples.webhook import Webhook, webhook
from tests.integration.web import check_problem, client_of, find
from tests.kafka import unused_port


@pytest.fixture(params=TRANSPORTS)
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


@pytest.fixture(params=DURABLE_TRANSPORTS)
def durable(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    return make_settings(broker_url(request), tmp_path)


def make_settings(broker: str, data_dir: Path, **changes: Any) -> Settings:
    values: dict[str, Any] = {
        "app_id": unique(UNOWNED.rstrip("-")),
        "broker": broker,
        "data_dir": data_dir,
        "partitions": 4 if broker.startswith("kafka") else 2,
        "web_port": unused_port(),
        "retry_backoff": 0.01,
        "circuit_pause": 0.02,
        "circuit_pause_max": 0.1,
        "session_timeout": 6.0,
    }
    return Settings(_env_file=None, **values | changes)


@asynccontextmanager
async def running(settings: Settings) -> AsyncIterator[tuple[EngineApp, httpx.AsyncClient]]:
    app = await started(create_app(settings))
    try:
        async with client_of(app) as client:
            yield app, client
    finally:
        await stop(app)


async def measure(
    client: httpx.AsyncClient, sensor_id: str, celsius: str, at: str | None = None, **headers: str
) -> str:
    """Send a reading; its token."""
    body = {"celsius": celsius} | ({} if at is None else {"at": at})
    answer = await client.post(f"/sensors/{sensor_id}/readings", json=body, headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.headers["Location"] == f"/sensors/{sensor_id}"
    return str(answer.json()["token"])


async def test_readings_become_exact_figures_that_are_never_older_than_their_token(settings: Settings) -> None:
    sensor_id = unique("s")
    async with running(settings) as (_, client):
        for _ in range(9):
            await measure(client, sensor_id, "0.1", at="2026-11-23T10:00:00Z")
        token = await measure(client, sensor_id, "-0.3", at="2026-11-23T09:00:00Z")
        shown = await find(client, f"/sensors/{sensor_id}", after=token, timeout="30s")
        assert shown == {
            "sensor_id": sensor_id,
            "latest": "0.1",
            "measured_at": "2026-11-23T10:00:00.000000Z",
            "minimum": "-0.3",
            "maximum": "0.1",
            "mean": "0.06",
            "count": 10,
        }


async def test_the_same_idempotency_key_makes_it_the_same_reading(settings: Settings) -> None:
    sensor_id, other = unique("s"), unique("s")
    headers = {"Idempotency-Key": "reading-1"}
    async with running(settings) as (_, client):
        for id in (sensor_id, sensor_id, other):
            token = await measure(client, id, "20", **headers)
            assert (await find(client, f"/sensors/{id}", after=token, timeout="30s"))["count"] == 1


async def test_the_list_has_every_sensor_page_by_page(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path)) as (app, client):
        for number in range(7):
            await measure(client, f"s-{number}", f"{number}.50")
        await at_rest(app)
        pages = [await find(client, "/sensors", limit=3)]
        while (cursor := pages[-1]["next_cursor"]) is not None:
            pages.append(await find(client, "/sensors", limit=3, cursor=cursor))
    items = [item for page in pages for item in page["items"]]
    assert all(len(page["items"]) <= 3 for page in pages)
    assert sorted((item["sensor_id"], item["latest"]) for item in items) == [(f"s-{n}", f"{n}.5") for n in range(7)]


async def test_a_list_with_a_token_is_never_older_than_it(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path)) as (_, client):
        for number in range(5):
            token = await measure(client, f"s-{number}", "20")
            listed = await find(client, "/sensors", after=token, timeout="30s")
            assert len(listed["items"]) == number + 1


async def test_bad_input_is_refused_and_says_why(tmp_path: Path) -> None:
    async with running(make_settings("memory://", tmp_path)) as (_, client):
        for body, field in (
            ({}, "celsius"),
            ({"celsius": 21.5}, "celsius"),
            ({"celsius": "NaN"}, "celsius"),
            ({"celsius": "1e3"}, "celsius"),
            ({"celsius": "-273.16"}, "celsius"),
            ({"celsius": "0.1234567"}, "celsius"),
            ({"celsius": "20", "at": "yesterday"}, "at"),
            ({"celsius": "20", "at": "2026-11-23T10:00:00"}, "at"),
        ):
            problem = check_problem(await client.post("/sensors/s-1/readings", json=body), 422)
            assert [error["field"] for error in problem["errors"]] == [field], body
        check_problem(await client.post(f"/sensors/{'s' * 129}/readings", json={"celsius": "20"}), 422)
        check_problem(await client.get("/sensors/nobody"), 404)
        check_problem(await client.get("/sensors", params={"limit": 0}), 422)


async def test_each_overheating_is_told_once_until_the_sensor_has_cooled_down(durable: Settings) -> None:
    sensor_id = unique("s")
    async with webhook() as hook, running(with_webhook(durable, hook)) as (app, client):
        for celsius in ("29.9", "30", "30.1", "31", "29", "35"):
            await measure(client, sensor_id, celsius)
        await at_rest(app)
        told = [(call["celsius"], call["limit"]) for call in hook.taken(sensor_id)]
        assert told == [("30.1", "30"), ("35", "30")]
        assert len(hook.keys(sensor_id)) == 2
        (row,) = [row for row in await rows(client, "alerted") if row["key"] == sensor_id]
        assert (row["row"]["celsius"], row["row"]["told"]) == ("35", True)


async def test_a_late_reading_says_nothing_of_how_hot_a_sensor_is_now(tmp_path: Path) -> None:
    async with webhook() as hook, running(with_webhook(make_settings("memory://", tmp_path), hook)) as (app, client):
        await measure(client, "s-1", "20", at="2026-11-23T10:00:00Z")
        await measure(client, "s-1", "40", at="2026-11-23T09:00:00Z")
        await at_rest(app)
        assert hook.calls == []
        assert (await find(client, "/sensors/s-1"))["maximum"] == "40"


async def test_a_webhook_that_is_away_is_tried_again_with_the_same_key(tmp_path: Path) -> None:
    async with (
        webhook(answers=[503, 429, 500]) as hook,
        running(with_webhook(make_settings("memory://", tmp_path), hook)) as (app, client),
    ):
        await measure(client, "s-1", "40")
        await wait_until(lambda: len(hook.calls) == 4, "the webhook has taken it")
        await at_rest(app)
        assert len(set(hook.keys("s-1"))) == 1


async def test_an_alert_that_the_webhook_refuses_is_a_dead_letter_and_can_be_retried(tmp_path: Path) -> None:
    async with (
        webhook(answers=[401]) as hook,
        running(with_webhook(make_settings("memory://", tmp_path), hook)) as (app, client),
    ):
        await measure(client, "s-1", "40")
        await at_rest(app)
        (letter,) = (await find(client, "/dead-letters"))["items"]
        assert (letter["topic"], letter["error_type"]) == ("alerts", "WebhookRefused")
        assert (await client.post(f"/dead-letters/{letter['id']}/retry")).status_code == 202
        await wait_until(lambda: len(hook.calls) == 2, "the webhook has taken it")
        await at_rest(app)
        assert len(set(hook.keys("s-1"))) == 1


async def test_figures_that_a_mistake_made_are_made_anew_from_the_readings(
    durable: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    sensor_id = unique("s")
    right = sensors.figures.handlers[sensors.ReadingTaken]

    def wrong(event: Any, work: Any) -> None:
        right(event, work)
        right(event, work)

    monkeypatch.setitem(sensors.figures.handlers, sensors.ReadingTaken, wrong)
    async with running(durable) as (app, client):
        for celsius in ("20", "21"):
            await measure(client, sensor_id, celsius)
        await at_rest(app)
        assert (await find(client, f"/sensors/{sensor_id}"))["count"] == 4
    monkeypatch.setitem(sensors.figures.handlers, sensors.ReadingTaken, right)
    async with running(durable) as (_, client):
        assert (await client.post("/tables/figures/rebuild", json={})).status_code == 202
        async with asyncio.timeout(60):
            while (found := await find(client, "/tables/figures/rebuild"))["state"] == "running":
                await asyncio.sleep(0.02)
        assert found["state"] == "done", found
        shown = await find(client, f"/sensors/{sensor_id}")
        assert (shown["count"], Decimal(shown["mean"])) == (2, Decimal("20.5"))


async def test_what_crashes_before_its_commit_is_done_again_and_counted_once(durable: Settings) -> None:
    sensor_id = unique("s")
    async with webhook() as hook:
        told = with_webhook(durable, hook)
        app = await started(create_app(told))
        async with client_of(app) as client:
            for number in range(20):
                await measure(client, sensor_id, str(25 + number % 10))
        await crash(app)
        async with running(told) as (app, client):
            await at_rest(app)
            shown = await find(client, f"/sensors/{sensor_id}")
            assert (shown["count"], shown["mean"]) == (20, "29.5")
            assert [call["celsius"] for call in hook.taken(sensor_id)] == ["31", "31"]


async def test_everything_that_the_engine_brings_along_is_there_and_knows_no_shop(settings: Settings) -> None:
    sensor_id = unique("s")
    async with running(settings) as (app, client):
        token = await measure(client, sensor_id, "20")
        await find(client, f"/sensors/{sensor_id}", after=token, timeout="30s")
        assert [check for check in await find(client, "/doctor") if not check["ok"]] == []
        await publish(app, READING_COMMANDS, sensor_id, b"no JSON")
        await at_rest(app)
        letters = (await find(client, "/dead-letters"))["items"]
        assert any(letter["topic"] == READING_COMMANDS.name for letter in letters)
        tables = {table["name"] for table in (await find(client, "/tables"))["items"]}
        assert {"handled-readings", "watches", "figures", "alerted"} <= tables
        names = [topic["name"] for topic in (await find(client, "/topics"))["items"]]
        topics = {name for name in names if not name.endswith("-changelog")}
        assert topics == {"alerts", "dead-letter-commands", "dead-letters", "reading-commands", "readings"}
        assert (await find(client, "/healthz"))["status"]
        assert (await find(client, "/readyz"))["status"]
        assert "sum-readings" in (await client.get("/metrics")).text
        paths = (await find(client, "/openapi.json"))["paths"]
        assert {"/sensors", "/sensors/{sensor_id}", "/dead-letters", "/tables/{name}/rebuild"} <= paths.keys()
        channels = (await find(client, "/asyncapi.json"))["channels"]
        assert channels.keys() == topics
        async with client.stream("GET", "/live") as live:
            assert live.status_code == 200


async def rows(client: httpx.AsyncClient, table: str) -> list[Any]:
    return (await find(client, f"/tables/{table}", limit=1000))["items"]  # type: ignore[no-any-return]


def with_webhook(settings: Settings, hook: Webhook) -> Settings:
    return settings.model_copy(update={"webhook_url": hook.url})
