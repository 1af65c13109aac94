"""A bounded cache of decoded rows."""

from typing import Any, Final

ABSENT: Final = object()  # not in the cache; a cached None is a row known not to exist


class RowCache:
    """Keeps about the `rows_max` most recently used rows.

    Two generations instead of a linked list: what is used moves to the young one, and when that is full the old one
    is dropped as a whole. One dict look-up on a hit, and never more than `rows_max` rows.
    """

    __slots__ = ("_half", "_old", "_young")

    def __init__(self, rows_max: int) -> None:
        self._half = max(1, rows_max // 2)
        self._young: dict[Any, Any] = {}
        self._old: dict[Any, Any] = {}

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
        if len(self._young) >= self._half:
            self._old, self._young = self._young, {}
        self._young[key] = row

    def __len__(self) -> int:
        return len(self._young) + len(self._old)
