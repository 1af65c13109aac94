"""What the tests of dead letters share: a service whose handler fails on demand, and applications with it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import msgspec

from engine.declare.service import Service
from engine.failures import service as managing
from engine.faust.app import EngineApp
from engine.web.dead_letters import bulk, decisions, gauges, queries
from engine.web.dead_letters import views as letter_views
from engine.web.routes import health, tables, topics, waiting
from engine.web.routes import queries as query_routes
from streams.settings import Settings
from tables.orders import views
from tests.apps import Tally, at_rest, make_settings, publish
from tests.integration.web import find


def services(tally: Tally) -> list[Service]:
    """The tally, and all that has to do with dead letters."""
    modules = (
        managing, decisions, bulk, queries, query_routes, gauges, letter_views, health, tables, topics, views, waiting,
    )  # fmt: skip
    return [tally.service, *(module.service for module in modules)]


def failing_settings(broker: str, folder: Path, **changes: Any) -> Settings:
    """Settings with which a failed record is a dead letter at once."""
    return make_settings(broker, folder, **{"retry_count": 0, **changes})


def value(event_id: str, amount: int = 1, kind: str = "tally.add", aggregate_id: str = "a") -> bytes:
    """A record's value: an envelope, as far as dead letters look at it."""
    return msgspec.json.encode({
        "eventId": event_id, "eventType": kind, "aggregateId": aggregate_id, "aggregateType": "Tally",
        "timestamp": "2026-11-23T10:00:00Z", "version": 1, "metadata": {"correlationId": f"c-{event_id}"},
        "payload": {"amount": amount},
    })  # fmt: skip


async def fail(app: EngineApp, tally: Tally, key: str, *event_ids: str) -> None:
    """Make records that fail, or wait behind one that did, and wait until they do."""
    values = [value(event_id) for event_id in event_ids]
    tally.poison |= set(values)
    await publish(app, tally.source, key, *values)
    await at_rest(app)


async def letters(client: httpx.AsyncClient, **query: str | int) -> list[Any]:
    """The dead letters, newest first."""
    listed: list[Any] = (await find(client, "/dead-letters", **query))["items"]
    return listed
