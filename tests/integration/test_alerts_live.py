"""Alerts and panels end to end: a real Prometheus scrapes a real worker, something goes wrong, and is put right."""

from __future__ import annotations

import asyncio
from pathlib import Path

from streams.topics import ORDER_COMMANDS
from tests.apps import at_rest, make_settings, publish, start, stop
from tests.integration.web import client_of
from tests.prometheus import Prometheus, panel_expressions


def ask_for_all_panels(prometheus: Prometheus) -> None:
    """Every panel is answered; Grafana puts an interval in place of its variable."""
    for expression in panel_expressions():
        prometheus.ask("query", query=expression.replace("$__rate_interval", "10s"))
    assert prometheus.value("sum(dead_letters) or vector(0)") == 2


async def test_alerts_fire_while_something_is_wrong_and_no_longer(tmp_path: Path) -> None:
    settings = make_settings("memory://", tmp_path)
    app = await start(settings)
    with Prometheus(tmp_path, [f"127.0.0.1:{settings.web_port}"]) as prometheus:

        async def wait_until(alerts: set[str]) -> None:
            await asyncio.to_thread(prometheus.wait_until, lambda: set(prometheus.firing()) == alerts, f"{alerts} fire")

        try:
            await asyncio.to_thread(
                prometheus.wait_until,
                lambda: prometheus.value('sum(partitions_owned) and on() up{job="orders"} == 1') == settings.partitions,
                "the worker is scraped",
            )
            await wait_until(set())

            await publish(app, ORDER_COMMANDS, "o-1", b"poison", b"more poison")
            await at_rest(app)
            await wait_until({"OrdersDeadLetters"})
            alert = (await asyncio.to_thread(prometheus.firing))["OrdersDeadLetters"]
            assert alert["annotations"]["summary"] == "2 dead letters of order-commands wait for a decision"

            await asyncio.to_thread(ask_for_all_panels, prometheus)

            async with client_of(app) as client:
                for letter in (await client.get("/dead-letters")).json()["items"]:
                    await client.post(f"/dead-letters/{letter['id']}/discard", json={"reason": "a test"})
            await wait_until(set())
        finally:
            await stop(app)
        await wait_until({"OrdersWorkerDown", "OrdersNoWorker"})
