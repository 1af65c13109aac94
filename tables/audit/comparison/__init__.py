"""The comparison of what the events lead to with the rows that are there, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from domain.analytics import Figures
from engine import AnyTable
from engine.inspection import StoreSnapshot
from tables.audit.findings import ROW_DIFFERS, ROW_MISSING, ROW_UNFOUNDED, ROW_UNREADABLE, Findings
from tables.audit.folds import RowLedger
from tables.audit.pace import Pace
from tables.audit.walk import walk

VALUE_CHARACTERS_MAX: Final = 200
# A record that was retried is counted later than the topic has it: whether it counts as late cannot be told afterwards.
_NOT_PROVABLE: Final[Mapping[type, frozenset[str]]] = {Figures: frozenset(("late_count",))}
_NOTHING: Final[frozenset[str]] = frozenset()


async def compare(
    table: AnyTable, ledger: RowLedger, topic: str, rows: StoreSnapshot, findings: Findings, pace: Pace
) -> None:
    """Hold every row of a table against its entry, and every entry against its row."""
    founded = 0
    async for key, raw in walk(rows, table, pace):
        findings.rows += 1
        entry = ledger.get(key)
        if entry is None:
            findings.add(ROW_UNFOUNDED, "there is a row, but no event that leads to it", topic, None,
                         table.name, key_text(table, key))  # fmt: skip
        else:
            founded += 1
            compare_row(table, key, raw, entry.row, topic, entry.offset, findings)
    if founded < len(ledger):
        await _find_missing(table, ledger, topic, rows, findings, pace)


async def _find_missing(
    table: AnyTable, ledger: RowLedger, topic: str, rows: StoreSnapshot, findings: Findings, pace: Pace
) -> None:
    """Name the entries that have no row."""
    for key, entry in ledger.items():
        if rows.read_raw(table, key) is None:
            findings.add(ROW_MISSING, "events lead to a row, but there is none", topic, entry.offset,
                         table.name, key_text(table, key))  # fmt: skip
        if pace.is_over():
            await pace.turn()


def compare_row(
    table: AnyTable, key: bytes, raw: bytes, expected: Any, topic: str, offset: int | None, findings: Findings
) -> None:
    """Hold one stored row against what it should be."""
    try:
        row = table.decode_row(raw)
    except msgspec.MsgspecError as error:
        findings.add(ROW_UNREADABLE, f"the row cannot be read: {error}", topic, offset, table.name,
                     key_text(table, key))  # fmt: skip
        return
    if row != expected and (detail := differing(row, expected)):
        findings.add(ROW_DIFFERS, detail, topic, offset, table.name, key_text(table, key))


def differing(row: Any, expected: Any) -> str:
    """The fields in which a row is not as it should be, "" where none can be proven to be wrong."""
    left_out = _NOT_PROVABLE.get(type(row), _NOTHING)
    fields = [
        f"{field} is {_text(getattr(row, field))}, should be {_text(getattr(expected, field))}"
        for field in row.__struct_fields__
        if field not in left_out and getattr(row, field) != getattr(expected, field)
    ]
    return "; ".join(fields)


def key_text(table: AnyTable, raw: bytes) -> str:
    """A row's key for people."""
    try:
        key = table.key.decode(raw)
    except (ValueError, IndexError):
        return repr(raw)
    parts = key if isinstance(key, tuple) else (key,)
    return ", ".join(map(str, parts))


def _text(value: Any) -> str:
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= VALUE_CHARACTERS_MAX else f"{text[:VALUE_CHARACTERS_MAX]}..."
