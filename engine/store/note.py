"""The note beside a store: how far its changelogs were in it, and whether it was found damaged.

A damaged store cannot always say so itself. Without it nothing would tell a changelog that has lost records, or was
made anew, from the one that the store was made from.
"""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

import msgspec

from engine.store.store import ChangelogMark, Store

log = logging.getLogger(__name__)


class StoreNote(msgspec.Struct, frozen=True):
    """What is known of a store besides itself, as of its last start, end or damage.

    `damage` says what is wrong with the folder whose inode is `folder`; another folder in its place is another store.
    """

    changelogs: dict[str, ChangelogMark] = {}
    damage: str = ""
    folder: int = 0

    def mark(self, changelog: str) -> ChangelogMark:
        """How far `changelog` was applied."""
        return self.changelogs.get(changelog, ChangelogMark())


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(StoreNote).decode


def read_note(store: Path) -> StoreNote:
    """The note of the store in a folder; an empty one where there is none, or none that can be read."""
    try:
        note = _decode(_path(store).read_bytes())
    except FileNotFoundError:
        return StoreNote()
    except (OSError, msgspec.MsgspecError) as error:
        log.warning("the note of the store %s cannot be read: %s", store, error)
        return StoreNote()
    return note if note.damage and note.folder == _inode(store) else StoreNote(note.changelogs)


def note_marks(store: Store) -> None:
    """Note how far the changelogs are in a store; on a full disk the note stays as it was."""
    _write(store.path, StoreNote(dict(store.marks)))


def note_damage(store: Path, note: StoreNote, damage: str) -> None:
    """Note that the store in a folder is damaged, which holds until another folder is in its place."""
    _write(store, StoreNote(note.changelogs, damage, _inode(store)))


def _write(store: Path, note: StoreNote) -> None:
    path = _path(store)
    beside = path.with_suffix(".new")
    try:
        beside.write_bytes(_encode(note))
        os.replace(beside, path)
    except OSError as error:
        log.warning("the note of the store %s cannot be written: %s", store, error.strerror)
        with contextlib.suppress(OSError):
            beside.unlink()


def _path(store: Path) -> Path:
    return store.with_name(f"{store.name}.note")


def _inode(store: Path) -> int:
    try:
        return store.stat().st_ino
    except OSError:
        return 0
