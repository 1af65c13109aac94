"""A bounded cache of decoded rows."""

from collections.abc import Mapping
from typing import Any, Final

ABSENT: Final = object()  # not in the cache; a cached None is a row known not to exist


class RowCache:
    """Keeps the most recently used rows of one table, about `rows_max` of them.

    Two generations instead of a linked list: what is used moves to the young one, and when that is full the old one
    is dropped as a whole. A look-up is one dict access on a hit, and a commit adds its rows with one `update`.
    """

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, rows_max: int) -> None:
        self._half = rows_max // 2
        self._young: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}

    def get(self, key: Any) -> Any:
        """The row, None if it is known not to exist, ABSENT if the store has to be asked."""
        row = self._young.get(key, ABSENT)
        if row is ABSENT:
            row = self._old.get(key, ABSENT)
            if row is not ABSENT:
                self._young[key] = row
                self._rotate()
        return row

    def put(self, key: Any, row: Any) -> None:
        """Remember `row` as the newest."""
        self._young[key] = row
        self._rotate()

    def update(self, rows: Mapping[Any, Any]) -> None:
        """Remember all of `rows` as the newest."""
        self._young.update(rows)
        self._rotate()

    def _rotate(self) -> None:
        if len(self._young) > self._half:
            # One commit may be larger than the cache: then it is not worth keeping.
            self._old = self._young if len(self._young) <= 2 * self._half else {}
            self._young = {}

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
