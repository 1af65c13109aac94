"""The engine's own tables: rows that it keeps of every application."""

from __future__ import annotations

from typing import Final

from engine.declare.table import AnyTable
from engine.declare.timers import TIMERS
from engine.failures.dead_letters import CLOSED_DEAD_LETTERS, DEAD_LETTER_COUNTS, DEAD_LETTERS
from engine.failures.lanes import LANES, WAITING
from engine.health.audits import AUDITS
from engine.positions.positions import ACCEPTED_LOSSES, POSITIONS
from engine.rebuilds.rows import REBUILDS, REBUILT_ROWS
from engine.store.repair_rows import REPAIRS

OWN_TABLES: Final[tuple[AnyTable, ...]] = (
    POSITIONS,
    ACCEPTED_LOSSES,
    TIMERS,
    LANES,
    WAITING,
    DEAD_LETTERS,
    CLOSED_DEAD_LETTERS,
    DEAD_LETTER_COUNTS,
    REBUILDS,
    REBUILT_ROWS,
    AUDITS,
    REPAIRS,
)
