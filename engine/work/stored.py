"""The stored partition: committed rows and positions, as readers see them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from engine.declare.partition import Rendering
from engine.declare.table import AnyTable, Table
from engine.failures.classify import InfrastructureError
from engine.store.note import note_marks
from engine.store.rows import Rows
from engine.store.snapshot import StoreSnapshot
from engine.store.store import Store

K = TypeVar("K")
V = TypeVar("V")


class StoredPartition:
    """What is committed of one partition; engine.declare.partition.Partition is what views see of it.

    All reads raise InfrastructureError while the store is not open.
    """

    def __init__(self, number: int) -> None:
        self.number = number
        self.committed: dict[tuple[str, str], int] = {}  # by agent and topic, what readers may rely on
        self._rows: Rows | None = None

    @property
    def rows(self) -> Rows:
        """The rows of the open store."""
        if self._rows is None:
            raise InfrastructureError(f"partition {self.number} is not open")
        return self._rows

    @property
    def store(self) -> Store:
        """The open store."""
        return self.rows.store

    def open(self, rows: Rows) -> None:
        """Let the rows of an opened store be read."""
        self._rows = rows

    def close_store(self) -> None:
        """Close the store, and note beside an intact one how far it is; it may not be open at all."""
        if (rows := self._rows) is None:
            return
        rows.store.close()
        self._rows = None
        if not rows.store.is_damaged:
            note_marks(rows.store)

    # ---- what views read

    def read(self, table: Table[K, V], key: K, *, keep: bool = True) -> V | None:
        """The committed row of `key`, None where there is none; not kept in the cache without `keep`."""
        return self.rows.read(table, key, keep)

    def rendered(self, rendering: Rendering[K, V], key: K) -> bytes | None:
        """The committed row of `key` as it is rendered, None where there is none."""
        return self.rows.rendered(rendering, key)

    def scan(
        self, table: Table[K, V], prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[K, V]]:
        """Committed rows whose key bytes begin with `prefix`, from the key bytes `start` on, in key order."""
        return self.rows.scan(table, prefix, start, reverse)

    def read_raw(self, table: Table[K, V], key: K) -> bytes | None:
        """The committed row of `key` as it is stored: what is in memory may hide that it is damaged there."""
        return self.rows.store.get(table.storage_key(key))

    def scan_raw(self, table: AnyTable, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Committed rows as they are stored; otherwise as `scan`."""
        return self.rows.scan_raw(table, prefix, start)

    def reached(self, agent: str, topic: str) -> int:
        """The offset before which everything of `topic` is handled by `agent` and committed."""
        return self.committed.get((agent, topic), 0)

    def store_size_bytes(self) -> int:
        """Bytes of the store on disk, 0 while it is not open."""
        return self._rows.store.size_bytes() if self._rows is not None else 0

    # ---- what audits and the scrub read

    def snapshot(self) -> StoreSnapshot:
        """All committed rows as they are now."""
        return StoreSnapshot(self.rows.store)

    def scrub(self, start: bytes, deadline: float) -> bytes | None:
        """Read the store from a key on, to see that it can be read; see Store.scrub."""
        return self.rows.store.scrub(start, deadline)
