"""How many bugs of the failing workers are mended: a file, which operators write and all workers read."""

from __future__ import annotations

from pathlib import Path


class Mended:
    """How many percent of all bugs are mended."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def percent(self) -> int:
        """As the file says now."""
        try:
            return int(self._path.read_text())
        except FileNotFoundError:
            return 0

    def mend(self, percent: int) -> None:
        """Let the file say so, at once."""
        scratch = self._path.with_suffix(".new")
        scratch.write_text(str(percent))
        scratch.replace(self._path)
