"""Where the embedded log keeps its rows: ordered key-value storage in memory or in RocksDB."""

import logging
import shutil
import time
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rocksdict import Rdict, WriteBatch, WriteOptions

from engine.declare.application import NAMELESS, Application
from engine.log.embedded.errors import LogReadFailed, LogUnavailable, LogWriteFailed
from engine.log.embedded.mark import MarkFile
from engine.log.embedded.opening import is_damage, open_log, remedy

logger = logging.getLogger(__name__)

REOPEN_PAUSE_S = 1.0
_REOPEN_BYTES = 4 << 20  # beside what the write-ahead log has, which opening writes into a table


class Storage(Protocol):
    """Ordered rows of bytes under keys of bytes."""

    @property
    def failed(self) -> bool:
        """Whether a write has failed: nothing more can be written until `reopen`."""

    @property
    def lost_end_at(self) -> float:
        """When it was last accepted that rows at the end are lost, in seconds since 1970; 0 for never."""

    def write(
        self,
        puts: Sequence[tuple[bytes, bytes]],
        deletes: Sequence[bytes] = (),
        delete_range: tuple[bytes, bytes] | None = None,
    ) -> None:
        """Delete, then put, all or nothing; raises LogWriteFailed."""

    def scan(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with first <= key < end in key order; nothing may be written before the scan is over or dropped.

        Raises LogReadFailed, LogUnavailable.
        """

    def reopen(self) -> None:
        """Start again after a failed write; raises LogLocked, LogUnavailable."""

    def give_up(self) -> None:
        """Let go of rows that could not be loaded; they have to be opened again."""

    def close(self) -> None:
        """Let go of the rows; closing twice is allowed."""


class MemoryStorage:
    """Rows in a dictionary, gone with the process."""

    failed = False
    lost_end_at = 0.0

    def __init__(self) -> None:
        self._rows: dict[bytes, bytes] = {}
        self._keys: list[bytes] = []

    def write(
        self,
        puts: Sequence[tuple[bytes, bytes]],
        deletes: Sequence[bytes] = (),
        delete_range: tuple[bytes, bytes] | None = None,
    ) -> None:
        """Delete, then put."""
        if delete_range is not None:
            first, end = (bisect_left(self._keys, key) for key in delete_range)
            for key in self._keys[first:end]:
                del self._rows[key]
            del self._keys[first:end]
        for key in deletes:
            if self._rows.pop(key, None) is not None:
                del self._keys[bisect_left(self._keys, key)]
        for key, value in puts:
            if key not in self._rows:
                insort(self._keys, key)
            self._rows[key] = value

    def scan(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with first <= key < end in key order."""
        position = bisect_left(self._keys, first)
        while position < len(self._keys) and (key := self._keys[position]) < end:
            yield key, self._rows[key]
            position += 1

    def reopen(self) -> None:
        """Nothing to do: writes to memory do not fail."""

    def give_up(self) -> None:
        """Nothing to do: rows in memory can be loaded."""

    def close(self) -> None:
        """Forget the rows."""
        self._rows, self._keys = {}, []


class RocksStorage:
    """Rows in one RocksDB folder, which one process at a time may hold.

    A write is in RocksDB's write-ahead log, handed to the operating system, before `write` returns: it survives a kill
    of the process. Without `sync` it is not forced to the disk, because that costs milliseconds per commit; a power cut
    or a crash of the machine may lose the last writes (always a tail, never one from the middle). `sync=True` pays.
    """

    def __init__(self, path: Path, sync: bool = False, application: Application = NAMELESS) -> None:
        """Open or create the folder; raises LogLocked, LogDamaged, LogUnavailable."""
        self._path = path
        self._application = application
        self._write_options = WriteOptions()
        self._write_options.sync = sync
        self._db: Rdict | None = None
        self._mark: MarkFile | None = None
        self._failed = False
        self._reopen_at = 0.0  # monotonic
        self._open()

    def _open(self) -> None:
        self._db, self._mark = open_log(self._path, self._application)

    @property
    def failed(self) -> bool:
        """Whether a write has failed."""
        return self._failed

    @property
    def lost_end_at(self) -> float:
        """When it was last accepted that rows at the end are lost, in seconds since 1970; 0 for never."""
        return self._mark.mark.lost_end_at if self._mark is not None else 0.0

    def write(
        self,
        puts: Sequence[tuple[bytes, bytes]],
        deletes: Sequence[bytes] = (),
        delete_range: tuple[bytes, bytes] | None = None,
    ) -> None:
        """Delete, then put, in one write batch; raises LogWriteFailed."""
        # Part of a failed write may be in the write-ahead log: writing behind it could bring it back to life.
        if self._failed:
            raise LogWriteFailed(f"the log in {self._path} has failed and must be opened again first")
        db = self._opened()
        batch = WriteBatch(raw_mode=True)
        if delete_range is not None:
            batch.delete_range(*delete_range)
        for key in deletes:
            batch.delete(key)
        for key, value in puts:
            batch.put(key, value)
        try:
            db.write(batch, self._write_options)
            if self._mark is not None:
                self._mark.advance(db.latest_sequence_number())
        except Exception as error:  # rocksdict raises plain Exceptions
            self._failed = True
            damage, room = remedy(self._application), "Free disk space or raise the limit on file sizes"
            raise LogWriteFailed(
                f"could not write to the log in {self._path}: {error}. Nothing was acknowledged. "
                f"{damage if is_damage(str(error)) else room}; the next write tries again."
            ) from error

    def scan(self, first: bytes, end: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Rows with first <= key < end in key order; raises LogReadFailed, LogUnavailable."""
        iterator = self._opened().iter()
        iterator.seek(first)
        while iterator.valid():
            key = iterator.key()
            if key >= end:
                return
            yield key, iterator.value()
            iterator.next()
        try:
            iterator.status()  # a damaged block ends an iteration just as the last row does
        except Exception as error:
            raise LogReadFailed(
                f"the log in {self._path} is damaged: {error}. Check the disk, restore the folder from a backup."
            ) from error

    def reopen(self) -> None:
        """Close and open the folder, once a second at most and only where there is room for what opening writes.

        Until it has been closed the rows can be read. Raises LogWriteFailed, LogLocked, LogDamaged, LogUnavailable.
        """
        now = time.monotonic()
        if now < self._reopen_at:
            raise LogWriteFailed(
                f"the log in {self._path} could not be written or opened again a moment ago, and is tried again in "
                f"{self._reopen_at - now:.1f} s: check the disk"
            )
        if self._db is not None and not self._has_room_to_open():
            raise LogWriteFailed(
                f"the log in {self._path} could not be written, and there is no room to open it again: free disk space"
            )
        self._reopen_at = now + REOPEN_PAUSE_S
        self.close()
        self._open()
        self._failed = False

    def give_up(self) -> None:
        """Close the folder; as after a failed write it has to be opened again."""
        self._failed = True
        self.close()

    def _has_room_to_open(self) -> bool:
        try:
            logged = sum(file.stat().st_size for file in self._path.glob("*.log"))
            return shutil.disk_usage(self._path).free >= logged + _REOPEN_BYTES
        except OSError:
            return True  # opening says what is the matter

    def close(self) -> None:
        """Close the folder and give up its lock."""
        if self._db is None:
            return
        sequence: int | None = None
        try:
            sequence = self._db.latest_sequence_number()
            self._db.close()
        except Exception as error:
            # Closing flushes what the write-ahead log holds as well; whatever was acknowledged is there.
            logger.warning("The log in %s was closed without a final flush: %s", self._path, error)
            sequence = None
        self._db = None
        if self._mark is not None:
            self._mark.close(sequence)
            self._mark = None

    def _opened(self) -> Rdict:
        if self._db is None:
            raise LogUnavailable(f"the log in {self._path} is closed")
        return self._db
