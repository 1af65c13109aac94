"""A snapshot of a partition's store: its rows as they were at one moment, while the store goes on."""

from __future__ import annotations

from typing import Any, TypeVar

from engine.declare.table import AnyTable, Table
from engine.store.store import Store

K = TypeVar("K")
V = TypeVar("V")

_ABSENT = "key not found"


class StoreSnapshot:
    """Committed rows of one moment. Close it before the store is closed, which cannot be opened again until then."""

    def __init__(self, store: Store) -> None:
        self._snapshot: Any
        self._cursor: Any
        self._snapshot, self._cursor = store.snapshot()
        self._store = store

    def read_raw(self, table: AnyTable, key: bytes) -> bytes | None:
        """The row of a key's bytes as it is stored, None where there is none; raises StoreDamaged, StoreError."""
        try:
            return self._snapshot[table.prefix + key]  # type: ignore[no-any-return]
        except Exception as error:
            if str(error) == _ABSENT:
                return None
            raise self._store.cannot_be_read(error) from error

    def read(self, table: Table[K, V], key: K) -> V | None:
        """The row of a key, None where there is none; raises StoreDamaged, StoreError."""
        raw = self.read_raw(table, table.key.encode(key))
        return None if raw is None else table.decode_row(raw)

    def rows(self, table: AnyTable, start: bytes, limit: int, prefix: bytes = b"") -> list[tuple[bytes, bytes]]:
        """At most `limit` rows as they are stored whose key bytes begin with `prefix`, from `start` on, in key order.

        Raises StoreDamaged, StoreError.
        """
        own, skip = table.prefix + prefix, len(table.prefix)
        cursor = self._cursor
        cursor.seek(max(own, table.prefix + start))
        found: list[tuple[bytes, bytes]] = []
        while len(found) < limit and cursor.valid():
            key = cursor.key()
            if not key.startswith(own):
                break
            found.append((key[skip:], cursor.value()))
            cursor.next()
        if not cursor.valid():
            try:
                cursor.status()  # a damaged block ends a walk just as the last row does
            except Exception as error:
                raise self._store.cannot_be_read(error) from error
        return found

    def close(self) -> None:
        """Let go of the store; may be called twice."""
        self._snapshot = self._cursor = None
