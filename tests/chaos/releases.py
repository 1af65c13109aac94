"""Releases of the failing workers: which bugs they have. A file, which operators write and all workers read."""

from __future__ import annotations

from pathlib import Path

BUGS = 100
PRESENT = 30  # of them at a time
MENDED_PER_RELEASE = 5
SOUND = "sound"


class Releases:
    """Each release mends some bugs and brings others, the last one has none; workers need no restart for it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def has(self, bug: int) -> bool:
        """Whether the present release has this bug, from 0 to BUGS - 1."""
        number = self._read()
        return number is not None and (bug - number * MENDED_PER_RELEASE) % BUGS < PRESENT

    @property
    def is_sound(self) -> bool:
        """Whether the last release is out."""
        return self._read() is None

    def next(self) -> None:
        """Bring the next release out."""
        number = self._read()
        if number is not None:
            self._write(str(number + 1))

    def last(self) -> None:
        """Bring the last release out."""
        self._write(SOUND)

    def _read(self) -> int | None:
        text = self._path.read_text() if self._path.exists() else "0"
        return None if text == SOUND else int(text)

    def _write(self, text: str) -> None:
        """At once: whoever reads meanwhile finds the one or the other."""
        scratch = self._path.with_suffix(".new")
        scratch.write_text(text)
        scratch.replace(self._path)
