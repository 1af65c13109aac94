"""Damage to the files of a store that no process is using, as a bad disk does it."""

from __future__ import annotations

from pathlib import Path

from engine.store.store import Store, StoreDamaged

STEP_BYTES = 1024


def table_files(store: Path) -> list[Path]:
    """The sorted tables of a store, the largest first."""
    return sorted(store.glob("*.sst"), key=lambda file: file.stat().st_size, reverse=True)


def flip(file: Path, offset: int) -> None:
    """Change one bit."""
    raw = bytearray(file.read_bytes())
    raw[offset] ^= 1
    file.write_bytes(raw)


def damage_rows(store: Path, prefix: bytes, *, but_not: bytes = b"") -> None:
    """Flip a bit in a block with rows of `prefix` and, where that is given, with none of `but_not`."""
    for file in table_files(store):
        for offset in range(0, file.stat().st_size, STEP_BYTES):
            flip(file, offset)
            if not is_whole(store, prefix) and (not but_not or is_whole(store, but_not)):
                return
            flip(file, offset)
    raise AssertionError(f"no block of {store} has rows of {prefix!r} alone")


def is_whole(store: Path, prefix: bytes) -> bool:
    """Whether the store can be opened, and all rows of `prefix` can be read."""
    try:
        opened = Store(store)
    except StoreDamaged:
        return False
    try:
        return bool(list(opened.scan(prefix)))
    except StoreDamaged:
        return False
    finally:
        opened.close()
