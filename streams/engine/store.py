"""The store of one partition: every table's rows, the changelog positions and nothing that is not in a changelog."""

import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import msgspec
from rocksdict import BlockBasedOptions, Cache, DBCompressionType, Options, Rdict, WriteBatch

from streams.transport.base import Outgoing

log = logging.getLogger(__name__)

FORMAT = 1
_META_KEY = b"\0meta"
BLOCK_CACHE_BYTES = 128 << 20
WRITE_BUFFER_BYTES = 64 << 20


class StoreError(Exception):
    """The store cannot be used; the message says what to do."""


class ChangelogMark(msgspec.Struct, frozen=True):
    """How far a changelog is in the store: the next offset to apply, and the record that tells a recreated topic."""

    position: int = 0
    identity: bytes = b""
    identity_offset: int = -1


class _Meta(msgspec.Struct, frozen=True):
    format: int
    written_at: float
    changelogs: dict[str, ChangelogMark]


_encode_meta = msgspec.msgpack.Encoder().encode
_decode_meta = msgspec.msgpack.Decoder(_Meta).decode
_block_cache = Cache(BLOCK_CACHE_BYTES)  # one for all partitions: the default of 2 GiB each would eat the machine


def _options() -> Options:
    table = BlockBasedOptions()
    table.set_block_cache(_block_cache)
    table.set_bloom_filter(10, False)
    options = Options(raw_mode=True)
    options.create_if_missing(True)
    options.set_block_based_table_factory(table)
    options.set_write_buffer_size(WRITE_BUFFER_BYTES)
    options.set_compression_type(DBCompressionType.lz4())
    options.set_keep_log_file_num(2)
    options.set_max_open_files(256)
    return options


class Store:
    """RocksDB of one partition.

    A write is atomic and survives kill -9 (write-ahead log in the page cache). It is not synced to the disk: after a
    power failure the changelog repairs what is missing, from the position that survived.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._db = self._open()
        self._changelogs: dict[str, ChangelogMark] = {}
        self.written_at = 0.0
        self._load()

    def _open(self) -> Rdict:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            return Rdict(str(self.path), _options())
        except Exception as error:
            raise StoreError(explain_open_failure(self.path, error)) from error

    def _load(self) -> None:
        raw = self._db.get(_META_KEY)
        if raw is None:
            return
        meta = _decode_meta(raw)
        if meta.format != FORMAT:
            raise StoreError(f"{self.path} has format {meta.format}, this version reads {FORMAT}: delete the folder")
        self._changelogs, self.written_at = dict(meta.changelogs), meta.written_at

    def mark(self, changelog: str) -> ChangelogMark:
        """How far `changelog` is applied."""
        return self._changelogs.get(changelog, ChangelogMark())

    def get(self, key: bytes) -> bytes | None:
        """The stored row of `key`."""
        try:
            return self._db.get(key)
        except Exception as error:
            raise StoreError(f"cannot read {self.path}: {error}") from error

    def write(self, rows: Iterable[tuple[bytes, Iterable[Outgoing]]], marks: Mapping[str, ChangelogMark]) -> None:
        """Apply rows (each table's key prefix with its keys and values, None deletes) and changelog marks at once.

        Raises StoreError when the disk is full or the folder went away; the store then holds none of it.
        """
        batch = WriteBatch(raw_mode=True)
        put, delete = batch.put, batch.delete
        for prefix, changes in rows:
            for key, value, _ in changes:
                if value is None:
                    delete(prefix + key)  # type: ignore[operator]
                else:
                    put(prefix + key, value)  # type: ignore[operator]
        changelogs, now = {**self._changelogs, **marks}, time.time()
        put(_META_KEY, _encode_meta(_Meta(FORMAT, now, changelogs)))
        try:
            self._db.write(batch)
        except Exception as error:
            raise StoreError(f"cannot write {self.path}: {error}; free space or check the disk") from error
        self._changelogs, self.written_at = changelogs, now

    def scan(self, prefix: bytes, start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Keys that begin with `prefix`, from `start` on, with their rows, in key order (or against it)."""
        rows = self._db.iter()
        if reverse:
            rows.seek_for_prev(start or prefix + b"\xff" * 64)
        else:
            rows.seek(start or prefix)
        while rows.valid():
            key = rows.key()
            if not key.startswith(prefix):
                return
            yield key, rows.value()
            if reverse:
                rows.prev()
            else:
                rows.next()

    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.stat().st_size for file in self.path.glob("*") if file.is_file())

    def wipe(self) -> None:
        """Forget everything; the changelog is then restored from its beginning."""
        self._db.close()
        shutil.rmtree(self.path, ignore_errors=True)
        self._db = self._open()
        self._changelogs, self.written_at = {}, 0.0

    def close(self) -> None:
        """Release the folder."""
        self._db.close()


def explain_open_failure(path: Path, error: Exception) -> str:
    """What to do when RocksDB cannot open `path`."""
    text = str(error)
    if "lock" in text.lower():
        return f"{path} is in use by another process: stop it, or set ORDERS_DATA_DIR to another folder"
    if isinstance(error, PermissionError) or "Permission denied" in text or "Read-only" in text:
        return f"{path} cannot be written by this user: change its permissions or set ORDERS_DATA_DIR"
    if "No space left" in text or "File too large" in text:
        return f"{path} has no room left: free space or set ORDERS_DATA_DIR to another disk"
    return f"{path} cannot be opened ({text}): it may be damaged; delete it, the changelog restores it"
