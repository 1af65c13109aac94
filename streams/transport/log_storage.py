"""Where the embedded log keeps its rows: ordered key-value storage in memory or in RocksDB."""

import logging
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Protocol

from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    WriteBatch,
    WriteOptions,
)

from streams.transport.log_errors import LogLocked, LogReadFailed, LogUnavailable, LogWriteFailed

logger = logging.getLogger(__name__)

_BLOCK_CACHE_BYTES = 64 * 1024 * 1024
_WRITE_BUFFER_BYTES = 32 * 1024 * 1024
_INFO_LOG_BYTES = 4 * 1024 * 1024


class Storage(Protocol):
    """Ordered rows of bytes under keys of bytes."""

    @property
    def failed(self) -> bool:
        """Whether a write has failed: nothing more can be written until `reopen`."""

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

    def close(self) -> None:
        """Let go of the rows; closing twice is allowed."""


class MemoryStorage:
    """Rows in a dictionary, gone with the process."""

    failed = False

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

    def close(self) -> None:
        """Forget the rows."""
        self._rows, self._keys = {}, []


class RocksStorage:
    """Rows in one RocksDB folder, which one process at a time may hold.

    A write is in RocksDB's write-ahead log, handed to the operating system, before `write` returns: it survives a kill
    of the process. Without `sync` it is not forced to the disk, because that costs milliseconds per commit; a power cut
    or a crash of the machine may lose the last writes (always a tail, never one from the middle). `sync=True` pays.
    """

    def __init__(self, path: Path, sync: bool = False) -> None:
        """Open or create the folder; raises LogLocked, LogUnavailable."""
        self._path = path
        self._write_options = WriteOptions()
        self._write_options.sync = sync
        self._db: Rdict | None = _open(path)
        self._failed = False

    @property
    def failed(self) -> bool:
        """Whether a write has failed."""
        return self._failed

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
        except Exception as error:  # rocksdict raises plain Exceptions
            self._failed = True
            raise LogWriteFailed(
                f"could not write to the log in {self._path}: {error}. Nothing was acknowledged. "
                "Free disk space or raise the limit on file sizes; the next write tries again."
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
        """Close and open the folder; raises LogLocked, LogUnavailable."""
        self.close()
        self._db = _open(self._path)
        self._failed = False

    def close(self) -> None:
        """Close the folder and give up its lock."""
        if self._db is None:
            return
        try:
            self._db.close()
        except Exception as error:
            # Closing flushes what the write-ahead log holds as well; whatever was acknowledged is there.
            logger.warning("The log in %s was closed without a final flush: %s", self._path, error)
        self._db = None

    def _opened(self) -> Rdict:
        if self._db is None:
            raise LogUnavailable(f"the log in {self._path} is closed")
        return self._db


def _open(path: Path) -> Rdict:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return Rdict(str(path), _options())
    except Exception as error:
        text = str(error)
        if "lock hold by current process" in text or "While lock file" in text:
            raise LogLocked(
                f"the log in {path} is in use by another worker. Stop that worker, "
                "or give this one a data folder of its own."
            ) from error
        raise LogUnavailable(
            f"cannot open the log in {path}: {text}. The folder must be on a working disk with free space "
            "and this user must be allowed to read and write it; or choose another data folder."
        ) from error


def _options() -> Options:
    # Rows are large and mostly read once, soon after they were written: a small cache and write buffer do, where the
    # defaults would take more memory than the application. LZ4 halves JSON for next to no time. All else is default.
    blocks = BlockBasedOptions()
    blocks.set_block_cache(Cache(_BLOCK_CACHE_BYTES))
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(blocks)
    options.set_write_buffer_size(_WRITE_BUFFER_BYTES)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_max_log_file_size(_INFO_LOG_BYTES)
    options.set_keep_log_file_num(2)
    return options
