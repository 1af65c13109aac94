"""Waiting over HTTP for commands to be handled."""

from __future__ import annotations

import time

from engine.cli.client import Refused, WorkerClient
from engine.cli.console import Failure

STALLED_AFTER_S = 120.0
WAIT = "10s"


async def wait_for_token(client: WorkerClient, path: str, token: str, **query: str | int) -> None:
    """Wait until what is at `path` shows what the token stands for; 404 will do. Raises Failure when nothing moves."""
    deadline = time.monotonic() + STALLED_AFTER_S
    while True:
        try:
            await client.find(path, after=token, timeout=WAIT, **query)
            return
        except Refused as refused:
            if refused.status != 504:
                raise
            if time.monotonic() > deadline:
                raise Failure(f"commands are not being processed: {refused.problem.get('detail')}") from refused
