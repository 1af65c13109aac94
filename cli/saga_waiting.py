"""Waiting over HTTP for sagas to end."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from engine.cli import Steps, WorkerClient, path_of

SAGAS_STALLED_AFTER_S = 30.0
LOOK_AFTER_S = 2.0
POLL_S = 0.2
UNDER_WAY = ("running", "compensating")


async def wait_for_sagas(
    client: WorkerClient, progress: Steps, order_ids: Sequence[str], stalled_after_s: float = SAGAS_STALLED_AFTER_S
) -> bool:
    """Wait until the sagas of these orders have ended; False when nothing has moved for so long that it gives up.

    One whose compensation failed waits for people, and counts as ended. Mostly nobody else's sagas are under way, and
    counting all of them is enough; only when their number does not fall any more it looks at each order.
    """
    waiting = list(order_ids)
    lowest = await _sagas_under_way(client)
    if lowest:
        progress.step("finishing sagas", lowest)
    moved_at = time.monotonic()
    while lowest and waiting:
        await asyncio.sleep(POLL_S)
        under_way = await _sagas_under_way(client)
        if under_way < lowest:
            progress.advance(lowest - under_way)
            lowest, moved_at = under_way, time.monotonic()
        elif time.monotonic() - moved_at > min(LOOK_AFTER_S, stalled_after_s / 2):
            if await _drop_ended(client, waiting):
                moved_at = time.monotonic()
            elif time.monotonic() - moved_at > stalled_after_s:
                return False
    return True


async def _sagas_under_way(client: WorkerClient) -> int:
    rows = (await client.get("/tables/saga-counts", limit=1000))["items"]
    return sum(row["row"]["count"] for row in rows if row["key"] in UNDER_WAY)


async def _drop_ended(client: WorkerClient, order_ids: list[str]) -> int:
    """Take orders from the end of the list until one whose saga is under way; how many."""
    dropped = 0
    while order_ids:
        saga = await client.find(path_of("tables", "sagas", order_ids[-1]))
        if saga is not None and saga["state"] in UNDER_WAY:
            break
        order_ids.pop()
        dropped += 1
    return dropped
