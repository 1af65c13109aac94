"""What the tests of the audit share: audits of a running application, and damage as mistakes would do it."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import msgspec

from engine.declare.table import Table
from engine.declare.topic import Topic
from engine.faust.app import EngineApp
from tests.apps import DEADLINE_S, wait_until

Report = Mapping[str, Any]


async def audit(client: httpx.AsyncClient, partitions: int) -> list[Report]:
    """Audit every partition; returns the reports once all are over."""
    for number in range(partitions):
        answer = await client.post(f"/audit/partitions/{number}")
        assert answer.status_code == 202, answer.text
    async with asyncio.timeout(DEADLINE_S):
        while True:
            reports = [(await client.get(f"/audit/partitions/{number}")).json() for number in range(partitions)]
            if all(report["state"] != "running" for report in reports):
                return reports
            await asyncio.sleep(0.02)


async def differences(app: EngineApp, client: httpx.AsyncClient) -> list[tuple[Any, ...]]:
    """The differences that an audit finds, each as kind, table, key, topic and offset."""
    reports = await audit(client, app.engine.settings.partitions)
    assert [report["error"] for report in reports] == [None] * len(reports), reports
    assert [report["unproven"] for report in reports] == [[]] * len(reports), reports
    return [
        (found["kind"], found["table"], found["key"], found["topic"], found["offset"])
        for report in reports
        for found in report["differences"]
    ]


async def damage(app: EngineApp, table: Table[Any, Any], by: str, key: Any, row: Any) -> None:
    """Replace a row in the partition of the key `by` (None removes it), as a mistake would have."""
    task = app.engine.task(app.engine.partition_for(by.encode()))
    work = task.work.open()
    work.put(table, key, row)
    work.release()
    task.work.commit_soon()
    await wait_until(lambda: task.read(table, key) == row, "the row is damaged")


async def change(app: EngineApp, table: Table[Any, Any], by: str, key: Any, **fields: Any) -> None:
    """Change some fields of a row by hand."""
    row = app.engine.task(app.engine.partition_for(by.encode())).read(table, key)
    assert row is not None
    await damage(app, table, by, key, msgspec.structs.replace(row, **fields))


async def forge(app: EngineApp, topic: Topic, key: str, *values: bytes) -> Sequence[int]:
    """Write events into a topic past its writer; their offsets."""
    number = app.engine.partition_for(key.encode())
    positions = await app.engine.broker.publish(topic.name, number, [(key.encode(), value, ()) for value in values])
    return [position.offset for position in positions]
