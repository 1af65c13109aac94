"""The audit at the end of a run: the workers' own comparison must find nothing, as the verifier must."""

from __future__ import annotations

from cli.audit import audit_partitions, lines_of, status_of
from engine.cli.client import WorkerClient
from engine.cli.console import PlainSteps


async def audit_problems(url: str) -> list[str]:
    """What an audit over all partitions finds, asked of one of the workers."""
    async with WorkerClient(url) as client:
        found = {"partitions": await audit_partitions(client, PlainSteps(lambda text: None))}
    return lines_of(found) if status_of(found) else []
