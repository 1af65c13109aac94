"""Stock for the orders of a file: what they ask for is put on the shelf before they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import msgspec

from cli.order_history import Supply
from cli.report import Outcome
from engine import format_timestamp, partition_for
from engine.cli import Steps, WorkerClient, path_of, wait_for_token

CHUNK_PRODUCTS = 1000  # about 250 KiB
PAGE_ROWS = 1000

_encode = msgspec.json.Encoder().encode


class Stocking:
    """Puts products on the shelf that have no stock yet; what is there of the others is left alone."""

    def __init__(self, client: WorkerClient, progress: Steps, outcome: Outcome, partitions: int) -> None:
        self._client = client
        self._progress = progress
        self._outcome = outcome
        self._partitions = partitions

    async def run(self, supplies: Sequence[Supply]) -> None:
        """Send what is missing, and return when all of it is on the shelf; raises Failure."""
        self._progress.step("stocking products", len(supplies))
        there = await self._stocked_products()
        missing = [supply for supply in supplies if supply.product_id not in there]
        self._progress.advance(len(supplies) - len(missing))
        for start in range(0, len(missing), CHUNK_PRODUCTS):
            await self._send(missing[start : start + CHUNK_PRODUCTS])

    async def _stocked_products(self) -> set[str]:
        found: set[str] = set()
        cursor: str | None = ""
        while cursor is not None:
            query = {"cursor": cursor} if cursor else {}
            page = await self._client.get("/tables/stock", limit=PAGE_ROWS, **query)
            found.update(item["key"] for item in page["items"] if item["row"]["stocked"])
            cursor = page["next_cursor"]
        return found

    async def _send(self, supplies: Sequence[Supply]) -> None:
        answer = await self._client.post_lines("/inventory/batch", b"\n".join(map(stock_line, supplies)))
        for problem in answer["problems"]:
            self._outcome.refused[refusal_of(problem)] += 1
        self._outcome.stocked += answer["accepted"]
        if answer["token"] is not None:
            # Reading a product waits for its partition only: one of each stands for all.
            one_each = {partition_for(s.product_id.encode(), self._partitions): s.product_id for s in supplies}
            for product_id in one_each.values():
                await wait_for_token(self._client, path_of("inventory", product_id), answer["token"])
        self._progress.advance(len(supplies))


def stock_line(supply: Supply) -> bytes:
    """One line of `POST /inventory/batch`."""
    return _encode({**msgspec.structs.asdict(supply), "occurred_at": format_timestamp(supply.occurred_at)})


def refusal_of(problem: dict[str, Any]) -> str:
    """Why a line was refused: the first field that could not be used, if it was for that."""
    errors = problem.get("errors") or [{"message": problem["detail"]}]
    return str(errors[0]["message"])
