"""The mark of an embedded log: a small file beside its folder that says which log is there, and how far it had got.

RocksDB begins anew where its files are missing, and takes a write-ahead log that breaks off for one that ends. The mark
tells both apart from a new log and from a whole one.
"""

from __future__ import annotations

import contextlib
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from engine.declare.application import NAMELESS, Application
from engine.log.embedded.errors import LogUnavailable

FORMAT: Final = 1
_BYTES: Final = 256  # within one sector of a disk, which is written whole or not at all
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


class Mark(msgspec.Struct, frozen=True):
    """What the file says; times are seconds since 1970.

    `sequence` is RocksDB's number of the last acknowledged write, `at` when that was. `boot` identifies the run of the
    machine in which it was. `is_closed` is set when the log was closed in order, with everything on the disk.
    `lost_end_at` is when it was last accepted that the log had lost its end, 0 for never.
    """

    format: int
    log: str
    created: float
    sequence: int
    at: float
    boot: str
    is_closed: bool
    lost_end_at: float = 0.0


def mark_path(folder: Path) -> Path:
    """The file of the log in `folder`."""
    return folder.with_name(f"{folder.name}.mark")


def this_boot() -> str:
    """An id of this run of the machine, empty where the system has none."""
    try:
        return _BOOT_ID.read_text().strip()
    except OSError:
        return ""


def read_mark(folder: Path, application: Application = NAMELESS) -> Mark | None:
    """The mark of the log in `folder`, None where there is none; raises LogUnavailable when it cannot be used."""
    path = mark_path(folder)
    try:
        mark = msgspec.json.decode(path.read_bytes(), type=Mark)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        raise LogUnavailable(f"cannot read {path}: {error.strerror}; give this user the right to read it") from error
    except msgspec.MsgspecError as error:
        raise LogUnavailable(
            f"{path} is damaged ({error}), so it cannot be said whether the log in {folder} is whole. "
            f"Restore both from a backup; or look at the log with {application.command('log check')}, and take it as "
            f"it is with {application.command('log repair')}."
        ) from error
    if mark.format != FORMAT:
        raise LogUnavailable(
            f"the log in {folder} was written by a later version (mark {mark.format}): use that version"
        )
    return mark


class MarkFile:
    """The mark of an open log; it follows every write, at the cost of a few microseconds."""

    def __init__(self, folder: Path, mark: Mark) -> None:
        """Write the mark; raises LogUnavailable where that is not possible."""
        self._mark = mark
        self._boot = this_boot()
        path = mark_path(folder)
        try:
            self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
            self.advance(mark.sequence)
            os.fsync(self._file)
        except OSError as error:
            raise LogUnavailable(f"cannot write {path}: {error.strerror}; free space, or change the rights") from error

    @property
    def mark(self) -> Mark:
        """What the file says now."""
        return self._mark

    def advance(self, sequence: int, is_closed: bool = False) -> None:
        """Say that the log has got to a sequence number; raises OSError."""
        changes = {"sequence": sequence, "at": round(time.time(), 3), "boot": self._boot, "is_closed": is_closed}
        self._mark = msgspec.structs.replace(self._mark, **changes)
        os.pwrite(self._file, msgspec.json.encode(self._mark).ljust(_BYTES), 0)

    def close(self, sequence: int | None) -> None:
        """Let go of the file; `sequence` says how far the log had got when everything of it was on the disk."""
        with contextlib.suppress(OSError):  # without it the next start takes the log for one that was not closed
            if sequence is not None:
                self.advance(sequence, is_closed=True)
                os.fsync(self._file)
        os.close(self._file)
