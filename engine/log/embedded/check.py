"""Reading all of an embedded log with its checksums, and going on with what is left of a damaged one."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

import msgspec
from msgspec.structs import replace
from rocksdict import Rdict

from engine.declare.application import NAMELESS, Application
from engine.declare.times import format_ms
from engine.log.embedded.errors import LogDamaged, LogUnavailable
from engine.log.embedded.layout import PartitionState, StoredTopic, decode_row, partition_key, row_key
from engine.log.embedded.mark import Mark, MarkFile, mark_path, read_mark
from engine.log.embedded.opening import close_database, has_rows, new_mark, open_database

BACKUP_ONLY: Final = "only a backup of the data folder has them"


class LogReport(NamedTuple):
    """What is in a log: records and topics that can be read, and a sentence for each thing that is wrong.

    `newest_ms` is the time of the newest record, milliseconds since 1970, 0 without one. `lost_rows` were acknowledged
    and are not there any more. `broken_off` says what a repair can leave out, `damaged` what only a backup has.
    """

    topics: int
    records: int
    newest_ms: int
    lost_rows: int
    broken_off: list[str]
    damaged: list[str]

    @property
    def problems(self) -> list[str]:
        """All that is wrong."""
        return [*self.broken_off, *self.damaged]


def check_log(folder: Path, application: Application = NAMELESS) -> LogReport:
    """Read every row of a log that no worker has open; changes nothing.

    Raises LogLocked, LogUnavailable where nothing can be read at all.
    """
    mark, broken_off = _read_mark(folder, application)
    if not (folder / "CURRENT").exists():
        if not has_rows(folder):
            raise LogUnavailable(f"there is no log in {folder}")
        repair = application.command("log repair")
        raise LogUnavailable(f"the file CURRENT is missing in {folder}: {repair} makes it again")
    try:
        database = open_database(folder, is_read_only=True, application=application)
    except LogDamaged as damage:
        broken_off.append(str(damage).split(". ")[0])
        database = open_database(folder, is_read_only=True, up_to_damage=True, application=application)
    try:
        return _read_all(database, mark, broken_off)
    finally:
        close_database(database)


def repair_log(folder: Path, reason: str, application: Application = NAMELESS) -> tuple[LogReport, list[str]]:
    """Go on with what can be read of a log; what was done, a sentence each, is written beside the log as well.

    Only the end of a write-ahead log, CURRENT and the mark can be given up or made again: rows that are damaged in the
    middle stay so. Raises LogLocked, LogUnavailable.
    """
    mark, broken_off = _read_mark(folder, application)
    done = list(_restore_current(folder))
    try:
        database = open_database(folder, application=application)
    except LogDamaged as damage:
        done.append(f"left out the write-ahead log from its first damage on ({_cause(damage)})")
        database = open_database(folder, up_to_damage=True, application=application)
    try:
        report = _read_all(database, mark, broken_off)
        fresh = replace(_fresh_mark(folder, database), lost_end_at=mark.lost_end_at if mark is not None else 0.0)
        if mark is None or report.lost_rows or mark.log != fresh.log:
            done.append(f"took the log as it is: {report.lost_rows} acknowledged rows are lost")
            fresh = replace(fresh, lost_end_at=round(time.time(), 3))
        MarkFile(folder, fresh).close(database.latest_sequence_number() if not report.damaged else None)
    finally:
        close_database(database)
    if done:
        _write_down(folder, reason, report, done)
    return report, done


def _fresh_mark(folder: Path, database: Rdict) -> Mark:
    try:
        return new_mark(database)
    except Exception as error:  # rocksdict raises plain Exceptions
        raise LogUnavailable(f"the id of the log in {folder} cannot be read ({error}): restore a backup") from error


def _read_mark(folder: Path, application: Application) -> tuple[Mark | None, list[str]]:
    try:
        return read_mark(folder, application), []
    except LogUnavailable as error:
        return None, [str(error).split(". ")[0]]


def _cause(damage: LogDamaged) -> str:
    return str(damage.__cause__ or damage)


def _restore_current(folder: Path) -> Iterator[str]:
    """Name the newest manifest in CURRENT where that file is missing."""
    manifests = sorted(folder.glob("MANIFEST-*"))
    if (folder / "CURRENT").exists():
        return
    if not manifests:
        raise LogUnavailable(f"neither CURRENT nor a MANIFEST is in {folder}: only a backup helps")
    (folder / "CURRENT").write_text(f"{manifests[-1].name}\n")
    yield f"made CURRENT again, which names {manifests[-1].name}"


def _write_down(folder: Path, reason: str, report: LogReport, done: list[str]) -> None:
    entry = {
        "at": format_ms(time.time_ns() // 1_000_000),
        "by": os.environ.get("USER") or str(os.getuid() if hasattr(os, "getuid") else ""),
        "reason": reason,
        "done": done,
        "lost_rows": report.lost_rows,
        "newest_record": format_ms(report.newest_ms) if report.newest_ms else None,
        "damaged": report.damaged,
    }
    with repairs_path(folder).open("a") as file:
        file.write(json.dumps(entry) + "\n")


def repairs_path(folder: Path) -> Path:
    """The file that has a line of JSON for each repair."""
    return mark_path(folder).with_suffix(".repairs")


# ---- reading


class _Found(NamedTuple):
    records: int
    newest_ms: int
    problem: str | None


def _read_all(database: Rdict, mark: Mark | None, broken_off: list[str]) -> LogReport:
    lost = max(0, mark.sequence - database.latest_sequence_number()) if mark is not None else 0
    if mark is not None and lost:
        at = format_ms(int(mark.at * 1000))
        broken_off.append(f"{lost} of {mark.sequence} acknowledged rows are missing at the end, the newest of {at}")
    records, newest_ms, damaged = 0, 0, list[str]()
    topics = _topics(database, damaged)
    for name, stored in topics:
        for number in range(stored.config.partitions):
            found = _read_partition(database, name, stored, number)
            records, newest_ms = records + found.records, max(newest_ms, found.newest_ms)
            if found.problem is not None:
                damaged.append(found.problem)
    return LogReport(len(topics), records, newest_ms, lost, broken_off, damaged)


def _topics(database: Rdict, damaged: list[str]) -> list[tuple[str, StoredTopic]]:
    topics = []
    rows = database.iter()
    rows.seek(b"t")
    while rows.valid() and rows.key() < b"u":
        topics.append((rows.key()[1:].decode(), msgspec.msgpack.decode(rows.value(), type=StoredTopic)))
        rows.next()
    if (error := _status(rows)) is not None:
        damaged.append(f"the list of topics is damaged ({error}): {BACKUP_ONLY}")
    return topics


def _read_partition(database: Rdict, name: str, stored: StoredTopic, number: int) -> _Found:
    """Read the rows of a partition, and compare them with where it begins and ends."""
    where = f"{name}/{number}"
    try:
        raw = database.get(partition_key(stored.number, number))
        state = msgspec.msgpack.decode(raw, type=PartitionState) if raw is not None else PartitionState()
    except Exception as error:  # rocksdict raises plain Exceptions
        return _Found(0, 0, f"{where}: where it ends cannot be read ({error}): {BACKUP_ONLY}")
    rows = database.iter()
    rows.seek(row_key(stored.number, number, state.start))
    end, position, records, newest_ms = row_key(stored.number, number, state.end), state.start, 0, 0
    while rows.valid() and rows.key() < end:
        try:
            row = decode_row(rows.value())
        except msgspec.MsgspecError as error:
            return _Found(records, newest_ms, f"{where}: a row behind offset {position} is damaged ({error})")
        if row.records[0].offset > position and not stored.config.compacted:
            missing = f"offsets {position} to {row.records[0].offset - 1}"
            return _Found(records, newest_ms, f"{where}: {missing} are missing: {BACKUP_ONLY}")
        records, newest_ms = records + len(row.records), max(newest_ms, row.records[-1].timestamp_ms)
        position = row.records[-1].offset + 1
        rows.next()
    if (damage := _status(rows)) is not None:
        damaged = f"{where}: from offset {position} on it cannot be read ({damage}): {BACKUP_ONLY}"
        return _Found(records, newest_ms, damaged)
    if position < state.end:  # the last row before the end is never dropped, by compaction either
        return _Found(records, newest_ms, f"{where}: offsets {position} to {state.end - 1} are missing: {BACKUP_ONLY}")
    return _Found(records, newest_ms, None)


def _status(rows: object) -> str | None:
    """The error that ended an iteration, None at its end."""
    try:
        rows.status()  # type: ignore[attr-defined]
    except Exception as error:  # rocksdict raises plain Exceptions
        return str(error)
    return None
