"""Whether pieces and money add up, as the worker says and as people read it."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from decimal import Decimal

import msgspec

from engine.cli import WorkerClient


class Check(msgspec.Struct, frozen=True):
    """Two figures that must be equal, as decimal numbers; `currency` is None for pieces."""

    check: str
    currency: str | None
    left: str
    right: str
    difference: str
    holds: bool


class Reconciliation(msgspec.Struct, frozen=True):
    """What `GET /analytics/reconciliation` says: sagas by state, and whether pieces and money add up."""

    adds_up: bool
    is_settled: bool
    checks: list[Check]
    sagas: dict[str, int]


async def reconcile(client: WorkerClient) -> Reconciliation:
    """Ask whether everything adds up; raises NoWorker, Refused."""
    return msgspec.convert(await client.get("/analytics/reconciliation", timeout="30s"), Reconciliation)


def lines_of(sums: Reconciliation) -> Iterator[str]:
    """How all sagas stand, and each sum with both figures."""
    yield "Sagas of all orders"
    for state, text in _STATES.items():
        count = sums.sagas.get(state, 0)
        if count or state in ("completed", "compensated"):
            yield f"  {text:<40}{count:>9,}"
    if sums.adds_up:
        yield "Stock and money add up"
    elif sums.is_settled:
        yield "Stock and money do NOT add up"
    else:
        yield "Stock and money do not add up yet: orders are on their way"
    names = max((len(check.check) for check in sums.checks), default=0)
    figures = max((len(_figure(check.left)) for check in sums.checks), default=0)
    for check in sums.checks:
        mark, sign = ("✓", "=") if check.holds else ("✗", "≠")
        difference = "" if check.holds else f", difference {_figure(check.difference)}"
        line = f"  {mark} {check.check:<{names}}  {_figure(check.left):>{figures}} {sign} {_figure(check.right)}"
        yield printable(f"{line} {check.currency or 'pieces'}{difference}")


_STATES = {
    "completed": "completed",
    "compensated": "compensated (everything undone)",
    "running": "still running",
    "compensating": "still compensating",
    "compensation_failed": "compensation failed: somebody has to look",
}


def printable(line: str) -> str:
    """The line, with plain signs where the terminal's encoding has no others."""
    try:
        line.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return line.replace("✓", "ok").replace("✗", "!!").replace("≠", "<>")
    return line


def _figure(number: str) -> str:
    return f"{Decimal(number):,}"
