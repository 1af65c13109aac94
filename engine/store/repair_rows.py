"""Repairs that people ask for: what is to be made whole again of what, how far that is, and who has asked for it."""

from __future__ import annotations

from typing import Final, Literal

import msgspec

from engine.declare.table import Table

FROM_STORE: Final = "store"
FROM_CHANGELOG: Final = "changelog"
FROM_EVENTS: Final = "events"

Source = Literal["store", "changelog", "events"]
RepairState = Literal["asked", "running", "done", "refused"]


class RepairAsked(Exception):
    """A partition's life ends because its next one begins with a repair."""


class Repair(msgspec.Struct):
    """One repair of a partition's changelogs, while it is under way and after that.

    `rows` were written from the store; `removed` ones the changelog had and the store has not. `detail` says why it was
    refused; `aside` is the folder that the store was moved to. With `accept_loss` records may be missing that were
    removed before the store had them.
    """

    partition: int
    source: Source
    by: str
    reason: str
    accept_loss: bool = False
    state: RepairState = "asked"
    detail: str = ""
    changelogs: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()
    rows: int = 0
    removed: int = 0
    aside: str = ""


class RepairRow(msgspec.Struct, frozen=True):
    """A repair that was made: when by the worker's clock, by whom and why.

    `ends` are the offsets at which the repaired changelogs ended before; what the repair has written is behind them.
    """

    at_ms: int
    source: Source
    by: str
    reason: str
    ends: dict[str, int]
    rows: int
    removed: int
    accept_loss: bool = False


REPAIRS: Table[str, RepairRow] = Table("repairs", RepairRow, help="repairs of changelogs: when, of what, by whom, why")


def repair_key(at_ms: int) -> str:
    """Key of a repair, in the order of time."""
    return f"{at_ms:013d}"


class Repairs:
    """The last repair of each partition that this worker was asked for."""

    def __init__(self) -> None:
        self._last: dict[int, Repair] = {}

    def ask(self, repair: Repair) -> None:
        """Note a repair for the next life of its partition."""
        self._last[repair.partition] = repair

    def last(self, number: int) -> Repair | None:
        """The last repair of a partition, None when there was none."""
        return self._last.get(number)

    def due(self, number: int) -> Repair | None:
        """The repair that a partition has to begin with, None when there is none."""
        last = self._last.get(number)
        return last if last is not None and last.state in ("asked", "running") else None
