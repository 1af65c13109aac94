"""Walking through the rows of a table as of a cut, in slices."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Final

from engine import AnyTable
from engine.inspection import StoreSnapshot
from tables.audit.pace import Pace

ROWS_AT_ONCE: Final = 200


async def walk(
    rows: StoreSnapshot, table: AnyTable, pace: Pace, prefix: bytes = b""
) -> AsyncIterator[tuple[bytes, bytes]]:
    """All rows of a table, or those whose key bytes begin with a prefix, with pauses for others."""
    start = prefix
    while found := rows.rows(table, start, ROWS_AT_ONCE, prefix):
        for row in found:
            yield row
            if pace.is_over():
                await pace.turn()
        start = found[-1][0] + b"\0"
