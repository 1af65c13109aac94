"""Bounded caches of decoded rows."""

from collections.abc import Iterable, Mapping
from typing import Any, Final
from weakref import WeakSet

ABSENT: Final = object()  # not in the cache; a cached None is a row known not to exist


class CacheBudget:
    """How many rows some caches keep together, at most about `rows_max`: those that are used most have most of it.

    Two generations instead of a linked list: what is used moves to the young one, and when the young ones are full, the
    old ones give way. They do so row by row as others come in: to free all at once would hold the event loop for tenths
    of seconds.
    """

    def __init__(self, rows_max: int) -> None:
        self._generation = rows_max // 3  # the young, the old, and the one that gives way
        self._young = 0
        self._giving_way: list[dict[Any, Any]] = []
        self._caches: WeakSet[RowCache] = WeakSet()

    def add(self, cache: "RowCache") -> None:
        """Count the rows of a cache."""
        self._caches.add(cache)

    def grown(self, rows: int) -> None:
        """There are so many rows more, or less, in a young generation."""
        self._young += rows
        if self._young > self._generation:
            # One commit may be larger than a generation: then it is not worth keeping.
            is_kept, self._young = self._young <= 2 * self._generation, 0
            self._giving_way += [gone for cache in self._caches for gone in cache.rotate(is_kept) if gone]
        for _ in range(rows):
            if not self._giving_way:
                break
            self._giving_way[-1].popitem()
            if not self._giving_way[-1]:
                self._giving_way.pop()


class RowCache:
    """Keeps the most recently used rows of one table, as far as the budget goes.

    A look-up is one dict access on a hit, and a commit adds its rows with one `update`.
    """

    __slots__ = ("__weakref__", "_budget", "_old", "_young")

    def __init__(self, budget: CacheBudget) -> None:
        self._budget = budget
        self._young: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}
        budget.add(self)

    def get(self, key: Any) -> Any:
        """The row, None if it is known not to exist, ABSENT if the store has to be asked."""
        row = self._young.get(key, ABSENT)
        if row is ABSENT:
            row = self._old.get(key, ABSENT)
            if row is not ABSENT:
                self.put(key, row)
        return row

    def put(self, key: Any, row: Any) -> None:
        """Remember `row` as the newest."""
        before = len(self._young)
        self._young[key] = row
        self._budget.grown(len(self._young) - before)

    def update(self, rows: Mapping[Any, Any]) -> None:
        """Remember all of `rows` as the newest."""
        before = len(self._young)
        self._young.update(rows)
        self._budget.grown(len(self._young) - before)

    def forget(self, keys: Iterable[Any]) -> None:
        """Let the store be asked for these."""
        before = len(self._young)
        for key in keys:
            self._young.pop(key, None)
            self._old.pop(key, None)
        self._budget.grown(len(self._young) - before)

    def rotate(self, is_kept: bool) -> tuple[dict[Any, Any], ...]:
        """Begin a new generation, with what was young as the old one if that is kept; return what gives way."""
        old, young, self._young = self._old, self._young, {}
        self._old = young if is_kept else {}
        return (old,) if is_kept else (old, young)

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
