"""The store of one partition: every table's rows, the changelog positions and nothing that is not in a changelog."""

import contextlib
import logging
import re
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final
from weakref import WeakSet

import msgspec
from rocksdict import (
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    Options,
    Rdict,
    RdictIter,
    ReadOptions,
    Snapshot,
    WriteBatch,
)

from engine.declare.application import NAMELESS, Application
from engine.log.ports import Outgoing

log = logging.getLogger(__name__)

FORMAT = 1
_META_KEY = b"\0meta"
BLOCK_CACHE_BYTES = 128 << 20
WRITE_BUFFER_BYTES = 64 << 20


# RocksDB's words for bytes or files that are not as it wrote them. A failed write is no damage: it may be a full disk.
_DAMAGE = re.compile(
    r"corruption|no such file|while (p?read|open a file for random read).*input/output error", re.I | re.S
)


class StoreError(Exception):
    """The store cannot be used; the message says what to do."""


class StoreDamaged(StoreError):
    """What the disk gives back is not what was written to it."""


class ChangelogMark(msgspec.Struct, frozen=True):
    """How far a changelog is in the store: the next offset to apply, and what tells it from another one.

    That is a record of it, and its topic's id, which is empty where it is not known. From `position` on, so many
    offsets as `markers` hold no record, but the marker of the transaction before.
    """

    position: int = 0
    identity: bytes = b""
    identity_offset: int = -1
    topic_id: str = ""
    markers: int = 0


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
    options.set_paranoid_checks(True)  # the default, as that of reads: all that is said about damage rests on them
    return options


def _read_options() -> ReadOptions:
    options = ReadOptions()
    options.set_verify_checksums(True)
    return options


def _scrub_options() -> ReadOptions:
    options = _read_options()
    options.fill_cache(False)  # type: ignore[call-arg]  # its stub lacks the parameter
    return options


_SCRUB_OPTIONS: Final = _scrub_options()


class _Closed:
    """Stands where a store's RocksDB was."""

    def close(self) -> None:
        """Again."""

    def __getattr__(self, name: str) -> Any:
        raise StoreError("the store is closed: its partition is moving or starts again")


_CLOSED: Final[Any] = _Closed()


class _Cursor:
    """RocksDB's iterator of a scan, which keeps the folder in use as long as there is one.

    A scan that is not at its end may be kept by the trace of an error, for how long nobody can say; closing the store
    ends it.
    """

    __slots__ = ("__weakref__", "rows")

    def __init__(self, rows: Any) -> None:
        self.rows = rows


class Store:
    """RocksDB of one partition.

    A write is atomic and survives kill -9 (write-ahead log in the page cache). It is not synced to the disk: after a
    power failure the changelog repairs what is missing, from the position that survived.
    """

    def __init__(self, path: Path, application: Application = NAMELESS) -> None:
        """Open or create the folder.

        Raises StoreDamaged, and StoreError for everything else that keeps it from being opened.
        """
        self.path = path
        self._application = application
        self.is_damaged = False
        self.on_damage: Callable[[StoreDamaged], None] = lambda damage: None  # told once, before the caller is
        self._cursors: WeakSet[_Cursor] = WeakSet()
        self._db = self._open()
        self._changelogs: dict[str, ChangelogMark] = {}
        self.written_at = 0.0
        try:
            self._load()
        except BaseException:
            self.close()
            raise

    def _open(self) -> Rdict:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            if _has_lost_its_beginning(self.path):
                raise self._damaged("opened", "CURRENT is missing")
            db = Rdict(str(self.path), _options())
            db.set_read_options(_read_options())
            return db
        except StoreError:
            raise
        except Exception as error:
            remedy = explain_open_failure(self.path, error, self._application)
            raise (self._damaged("opened", error) if remedy is None else StoreError(remedy)) from error

    def _load(self) -> None:
        raw = self.get(_META_KEY)
        if raw is None:
            if any(self.scan(b"")):
                raise self._damaged("read", "it has rows and does not say how far its changelogs are in it")
            return
        try:
            meta = _decode_meta(raw)
        except msgspec.MsgspecError as error:
            raise self._damaged("read", error) from error
        if meta.format != FORMAT:
            raise StoreError(
                f"{self.path} has format {meta.format}, this version reads {FORMAT}: run the release that wrote it, or "
                "move the folder away and keep it; it is restored from the changelogs, or the worker says why it cannot"
            )
        self._changelogs, self.written_at = dict(meta.changelogs), meta.written_at

    def _damaged(self, verb: str, reason: object) -> StoreDamaged:
        """The error for damage, of which `on_damage` knows from now on."""
        damage = StoreDamaged(f"{self.path} is damaged and cannot be {verb} ({reason})")
        if not self.is_damaged:
            self.is_damaged = True
            self.on_damage(damage)
        return damage

    def _failure(self, verb: str, error: Exception) -> StoreError:
        """What an error of RocksDB means."""
        if isinstance(error, StoreError):
            return error
        if _DAMAGE.search(str(error)):
            return self._damaged(verb, error)
        return StoreError(f"{self.path} cannot be {verb} ({error}): free space or check the disk")

    def cannot_be_read(self, error: Exception) -> StoreError:
        """What an error of RocksDB means that came while a snapshot of this store was read."""
        return self._failure("read", error)

    def mark(self, changelog: str) -> ChangelogMark:
        """How far `changelog` is applied."""
        return self._changelogs.get(changelog, ChangelogMark())

    @property
    def marks(self) -> Mapping[str, ChangelogMark]:
        """How far each changelog is applied."""
        return self._changelogs

    def get(self, key: bytes) -> bytes | None:
        """The stored row of `key`; raises StoreDamaged, StoreError."""
        try:
            return self._db.get(key)
        except Exception as error:
            raise self._failure("read", error) from error

    def write(self, rows: Iterable[tuple[bytes, Iterable[Outgoing]]], marks: Mapping[str, ChangelogMark]) -> None:
        """Apply rows (each table's key prefix with its keys and values, None deletes) and changelog marks at once.

        Raises StoreError when the disk is full, StoreDamaged when RocksDB has found damage on its own; the store then
        holds none of it.
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
            raise self._failure("written", error) from error
        self._changelogs, self.written_at = changelogs, now

    def scan(self, prefix: bytes, start: bytes = b"", reverse: bool = False) -> Iterator[tuple[bytes, bytes]]:
        """Keys that begin with `prefix`, from `start` on, with their rows, in key order (or against it).

        Raises StoreDamaged, StoreError where not all of them can be read.
        """
        cursor = self._open_cursor()
        rows = cursor.rows
        if reverse:
            rows.seek_for_prev(start or prefix + b"\xff" * 64)
        else:
            rows.seek(start or prefix)
        while rows.valid():
            key, value = rows.key(), rows.value()
            if not key.startswith(prefix):
                return
            if reverse:
                rows.prev()
            else:
                rows.next()
            del rows
            yield key, value
            rows = cursor.rows
        try:
            rows.status()  # a damaged block ends an iteration just as the last row does
        except Exception as error:
            raise self._failure("read", error) from error
        finally:
            cursor.rows = _CLOSED
            del rows

    def _open_cursor(self, options: ReadOptions | None = None) -> _Cursor:
        try:
            cursor = _Cursor(self._db.iter(options))
        except Exception as error:
            raise self._failure("read", error) from error
        self._cursors.add(cursor)
        return cursor

    def scrub(self, start: bytes, deadline: float) -> bytes | None:
        """Read from the key `start` on until `deadline` (of `perf_counter`), past the cache; the key to go on at.

        None when the last row is read. Raises StoreDamaged, StoreError.
        """
        cursor = self._open_cursor(_SCRUB_OPTIONS)
        rows = cursor.rows
        rows.seek(start)
        try:
            while rows.valid():
                rows.value()
                if time.perf_counter() >= deadline:
                    return bytes(rows.key()) + b"\0"
                rows.next()
            rows.status()
        except Exception as error:
            raise self._failure("read", error) from error
        finally:
            cursor.rows = _CLOSED
            del rows
        return None

    def snapshot(self) -> tuple[Snapshot, RdictIter]:
        """All rows as they are now, to look up and to walk through; the folder stays in use until both are let go of
        (see StoreSnapshot).
        """
        # An iterator shows what was there when it was made. Those that a snapshot makes do not: they show what is.
        return self._db.snapshot(), self._db.iter()

    def size_bytes(self) -> int:
        """Bytes on disk; raises StoreError when the folder cannot be looked at."""
        size = 0
        try:
            for file in self.path.iterdir():
                with contextlib.suppress(FileNotFoundError):  # RocksDB has just removed it
                    size += file.stat().st_size
        except OSError as error:
            raise StoreError(f"{self.path} cannot be looked at: {error.strerror}") from error
        return size

    def wipe(self) -> None:
        """Forget everything; the changelog is then restored from its beginning."""
        self.close()
        shutil.rmtree(self.path, ignore_errors=True)
        self._begin_anew()

    def put_aside(self) -> Path:
        """Move the folder away and begin an empty one; returns where it is now."""
        self.close()
        aside = self.path.with_name(f"{self.path.name}.aside-{time.time_ns() // 1_000_000}")
        self.path.rename(aside)
        self._begin_anew()
        return aside

    def _begin_anew(self) -> None:
        self._db = self._open()
        self._changelogs, self.written_at = {}, 0.0

    def close(self) -> None:
        """Release the folder; what cannot be flushed any more is in the write-ahead log or the changelog."""
        db, self._db = self._db, _CLOSED
        for cursor in list(self._cursors):
            cursor.rows = _CLOSED
        try:
            db.close()
        except Exception as error:
            log.warning("%s", self._failure("closed in order", error))


def _has_lost_its_beginning(path: Path) -> bool:
    """Whether RocksDB would begin anew where a store has been, and delete what is left of it."""
    return not (path / "CURRENT").exists() and any(path.glob("*.sst"))


def explain_open_failure(path: Path, error: Exception, application: Application = NAMELESS) -> str | None:
    """What to do when RocksDB cannot open `path`; None where it is damaged."""
    text = str(error)
    if "lock hold by" in text or "While lock file" in text:
        return (
            f"{path} is in use by another process: stop it, or set {application.variable('data_dir')} to another folder"
        )
    if isinstance(error, PermissionError) or "Permission denied" in text or "Read-only" in text:
        return f"{path} cannot be written by this user: change its permissions, or {application.moving_data}"
    if "No space left" in text or "File too large" in text:
        return f"{path} has no room left: free space, or {application.moving_data}"
    if _DAMAGE.search(text):
        return None
    return f"{path} cannot be opened ({text}): check the disk and its folder"
