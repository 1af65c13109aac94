"""Rows of one partition: the committing unit of work, the cache and the store, in the order they are asked."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

from engine.declare.partition import Rendering
from engine.declare.table import AnyTable, Table
from engine.declare.unit_of_work import MISSING, UnitOfWork
from engine.observe.metrics import Metrics
from engine.store.cache import ABSENT, CacheBudget, RowCache
from engine.store.store import Store

K = TypeVar("K")
V = TypeVar("V")


class Rows:
    """Committed rows for readers, and for handlers those of the unit of work that is being committed too.

    A failed commit ends the partition task, and this with it: nothing here outlives what the changelog says.
    """

    def __init__(self, store: Store, budget: CacheBudget, metrics: Metrics) -> None:
        self.store = store
        self.committing: UnitOfWork | None = None
        self._budget = budget
        self._metrics = metrics
        self._caches: dict[AnyTable, RowCache] = {}
        self._rendered: dict[Rendering[Any, Any], RowCache] = {}

    def committed_or_committing(self, table: Table[K, V], key: K) -> V | None:
        """The row that the unit of work being committed leaves, or the committed one; None where there is none.

        Asked once or more for each record: a hit in the cache costs no further call.
        """
        if self.committing is not None:
            rows = self.committing.rows.get(table)
            if rows is not None:
                row = rows.get(key, MISSING)
                if row is not MISSING:
                    return row  # type: ignore[no-any-return]
        cache = self._caches.get(table)
        if cache is not None:
            row = cache.get(key)
            if row is not ABSENT:
                self._metrics.cache_hits += 1
                return row  # type: ignore[no-any-return]
        return self.read(table, key)

    def read(self, table: Table[K, V], key: K, keep: bool = True) -> V | None:
        """The committed row of `key`, None where there is none; one read for a list need not be kept in the cache."""
        cache = self._cache(table)
        row: Any = cache.get(key)
        if row is not ABSENT:
            self._metrics.cache_hits += 1
            return row  # type: ignore[no-any-return]
        self._metrics.cache_misses += 1
        raw = self.store.get(table.storage_key(key))
        row = None if raw is None else table.decode_row(raw)
        if table.cached and keep:
            cache.put(key, row)
        return row  # type: ignore[no-any-return]

    def rendered(self, rendering: Rendering[K, V], key: K) -> bytes | None:
        """The committed row of `key` as it is rendered, None where there is none; kept until the row changes."""
        cache = self._rendered.get(rendering)
        if cache is None:
            cache = self._rendered[rendering] = RowCache(self._budget)
        body: Any = cache.get(key)
        if body is not ABSENT:
            self._metrics.cache_hits += 1
            return body  # type: ignore[no-any-return]
        row = self.read(rendering.table, key, keep=False)
        body = None if row is None else rendering.render(row)
        cache.put(key, body)
        return body  # type: ignore[no-any-return]

    def scan(
        self, table: Table[K, V], prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[K, V]]:
        """Committed rows whose key bytes begin with `prefix`, from the key bytes `start` on, in key order."""
        for key, value in self.scan_raw(table, prefix, start, reverse):
            yield table.key.decode(key), table.decode_row(value)

    def scan_raw(
        self, table: AnyTable, prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[bytes, bytes]]:
        """The same as `scan`, as they are stored."""
        skip = len(table.prefix)
        first = table.prefix + start if start else b""
        for key, value in self.store.scan(table.prefix + prefix, first, reverse):
            yield key[skip:], value

    def committed(self) -> None:
        """The unit of work being committed is committed: readers may see its rows."""
        assert self.committing is not None
        for table, rows in self.committing.rows.items():
            if table.cached:
                self._cache(table).update(rows)
        for rendering, cache in self._rendered.items():
            cache.forget(self.committing.rows.get(rendering.table, ()))
        self.committing = None

    def _cache(self, table: AnyTable) -> RowCache:
        cache = self._caches.get(table)
        if cache is None:
            cache = self._caches[table] = RowCache(self._budget)
        return cache
