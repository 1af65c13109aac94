"""The sensors as a process of their own: started by Faust, killed, seen by the commands, and lifted out of here."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from tests.e2e.processes import Site
from tests.examples.webhook import Webhook, webhook

FAUST = (sys.executable, "-m", "faust", "-A", "examples.sensors.app")
COMMANDS = (sys.executable, "-m", "examples.sensors.app")
SENSORS = ("s-1", "s-2", "s-3")
READINGS = 40  # of each sensor
TEMPERATURES = ("29", "31", "29.5", "33.25")  # one after the other: every second one is an overheating
KILLS_AFTER = (25, 70)  # readings


def site_of(folder: Path, port: int, **settings: object) -> Site:
    site = Site(folder, port)
    values = {"data_dir": folder / "data", "web_port": port, **settings}
    site.settings = {f"SENSORS_{name.upper()}": str(value) for name, value in values.items()}
    return site


@pytest_asyncio.fixture
async def hook() -> AsyncIterator[Webhook]:
    async with webhook() as found:
        yield found


@pytest.fixture(params=["embedded", pytest.param("kafka", marks=pytest.mark.kafka)])
def site(request: pytest.FixtureRequest, tmp_path: Path, unused_port: int, hook: Webhook) -> Site:
    kafka = request.getfixturevalue("private_kafka_broker") if request.param == "kafka" else None
    broker = "embedded://" if kafka is None else f"kafka://{kafka.bootstrap}"
    return site_of(tmp_path, unused_port, broker=broker, webhook_url=hook.url, session_timeout=1)


async def measure(client: httpx.AsyncClient, number: int) -> str:
    """Send a reading until it is taken, as a client would that does not know whether it was; its token."""
    sensor_id, turn = SENSORS[number % len(SENSORS)], number // len(SENSORS)
    body = {"celsius": TEMPERATURES[turn % len(TEMPERATURES)], "at": f"2026-11-23T10:{turn:02}:00Z"}
    async with asyncio.timeout(90):
        while True:
            try:
                answer = await client.post(
                    f"/sensors/{sensor_id}/readings", json=body, headers={"Idempotency-Key": f"reading-{turn}"}
                )
            except httpx.TransportError:
                await asyncio.sleep(0.05)
                continue
            if answer.status_code == 202:
                return str(answer.json()["token"])
            assert answer.status_code == 503, answer.text
            await asyncio.sleep(0.05)


async def test_killed_workers_count_each_reading_once_and_tell_each_overheating_once(site: Site, hook: Webhook) -> None:
    async with httpx.AsyncClient(base_url=site.url, timeout=40, trust_env=False) as client:
        first, tokens = 0, {}
        for last in (*KILLS_AFTER, len(SENSORS) * READINGS):
            with site.start("worker", command=FAUST) as worker:  # killed at the end of the block, whatever it does
                await asyncio.to_thread(worker.wait_until_ready)
                for number in range(first, last):
                    tokens[SENSORS[number % len(SENSORS)]] = await measure(client, number)
                first = last
                if last not in KILLS_AFTER:
                    await check(client, tokens, hook)
                    assert await asyncio.to_thread(worker.stop) == 0


async def check(client: httpx.AsyncClient, tokens: dict[str, str], hook: Webhook) -> None:
    overheatings = [{"celsius": text, "limit": "30"} for text in ("31", "33.25")] * (READINGS // len(TEMPERATURES))
    for sensor_id, token in tokens.items():
        shown = await client.get(f"/sensors/{sensor_id}", params={"after": token, "timeout": "30s"})
        figures = {name: shown.json()[name] for name in ("count", "latest", "minimum", "maximum", "mean")}
        assert figures == {"count": READINGS, "latest": "33.25", "minimum": "29", "maximum": "33.25", "mean": "30.6875"}
        async with asyncio.timeout(60):
            while len(hook.taken(sensor_id)) < len(overheatings):
                await asyncio.sleep(0.02)
        told = [{name: call[name] for name in ("celsius", "limit")} for call in hook.taken(sensor_id)]
        assert told == overheatings


def test_faust_and_the_commands_of_every_application_know_the_sensors(tmp_path: Path, unused_port: int) -> None:
    site = site_of(tmp_path, unused_port)
    listed = site.run("agents", command=FAUST)
    assert listed.returncode == 0, listed.stderr
    assert all(name in listed.stdout for name in ("take-readings", "sum-readings", "send-alerts")), listed.stdout
    refused = site.run("worker", command=FAUST, SENSORS_LIMIT="warm")
    assert (refused.returncode, "Traceback" in refused.stderr) == (1, False)
    assert "SENSORS_LIMIT=warm" in refused.stderr
    with site.start("worker", command=COMMANDS) as worker:
        worker.wait_until_ready()
        httpx.post(f"{site.url}/sensors/s-1/readings", json={"celsius": "20"}).raise_for_status()
        for words in (
            ("doctor",),
            ("topics",),
            ("dead-letters", "list"),
            ("rebuild", "figures"),
            ("contracts", "--help"),
        ):
            done = site.run(*words, command=COMMANDS)
            assert done.returncode == 0, (words, done.stdout, done.stderr)
            assert "orders" not in (done.stdout + done.stderr).lower(), words
        assert worker.stop() == 0
    assert "orders" not in worker.output.lower()
