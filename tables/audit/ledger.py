"""Ledgers: what a fold has made of the events so far, by key, in bounded memory.

Entries that were not used for a while are moved to a scratch store on disk.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

import msgspec
from rocksdict import BlockBasedOptions, Options, Rdict, WriteBatch

E = TypeVar("E")
V = TypeVar("V")

ENTRIES_MAX: Final = 20_000
MOVED_AT_ONCE: Final = 200


class Entry(msgspec.Struct, Generic[V]):
    """The row that events lead to, and the offset of the last event that changed it."""

    row: V
    offset: int


class Scratch:
    """The store on disk of one audit: made when it is needed, removed at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._db: Rdict | None = None

    @property
    def db(self) -> Rdict:
        """The open store."""
        if self._db is None:
            self.remove()
            self._folder.parent.mkdir(parents=True, exist_ok=True)
            options = Options(raw_mode=True)
            options.create_if_missing(True)
            table = BlockBasedOptions()
            table.set_bloom_filter(10, False)  # most keys that are asked for are new
            options.set_block_based_table_factory(table)
            self._db = Rdict(str(self._folder), options)
        return self._db

    def remove(self) -> None:
        """Remove it; an audit that was killed may have left one behind."""
        if self._db is not None:
            self._db.close()
            self._db = None
        shutil.rmtree(self._folder, ignore_errors=True)


class Ledger(Generic[E]):
    """Entries by key bytes. What `get` returns may be changed in place and is kept by `put`."""

    def __init__(self, entry: Any, name: str, scratch: Scratch, entries_max: int = ENTRIES_MAX) -> None:
        self._recent: dict[bytes, E] = {}
        self._moved = False
        self._count = 0
        self._prefix = name.encode() + b"\0"
        self._scratch = scratch
        self._entries_max = entries_max
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(entry).decode

    def __len__(self) -> int:
        return self._count

    def get(self, key: bytes) -> E | None:
        """The entry of a key, None where there is none."""
        entry = self._recent.get(key)
        if entry is None and self._moved:
            raw = self._scratch.db.get(self._prefix + key)
            return None if raw is None else self._decode(raw)
        return entry

    def put(self, key: bytes, entry: E, *, is_new: bool) -> None:
        """Keep an entry; `is_new` when `get` had none."""
        self._count += is_new
        self._recent.pop(key, None)  # those used last come last
        self._recent[key] = entry
        if len(self._recent) > self._entries_max:
            self._move()

    def _move(self) -> None:
        batch = WriteBatch(raw_mode=True)
        oldest = list(islice(self._recent, MOVED_AT_ONCE))
        for key in oldest:
            batch.put(self._prefix + key, self._encode(self._recent.pop(key)))
        self._scratch.db.write(batch)
        self._moved = True

    def items(self) -> Iterator[tuple[bytes, E]]:
        """All entries, in no order."""
        yield from list(self._recent.items())
        if not self._moved:
            return
        cursor = self._scratch.db.iter()
        cursor.seek(self._prefix)
        while cursor.valid() and (key := cursor.key()).startswith(self._prefix):
            own = key[len(self._prefix) :]
            if own not in self._recent:
                yield own, self._decode(cursor.value())
            cursor.next()
