"""What a data folder remembers of the installation that its stores belong to."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from engine.declare.application import Application
from engine.installation.mark import NotTheOwner

FILE = "installation.json"


class Remembered(msgspec.Struct, frozen=True, rename="camel"):
    """The owner of the stores beside the file."""

    app_id: str
    installation: str


class StoresFolder:
    """The folder of the stores: one folder for each partition number, and a file that says whose they are.

    The file lies beside the stores, so that it goes where they go: stores that are moved away take it along.
    """

    def __init__(self, path: Path, application: Application, is_kept: bool) -> None:
        self.path = path
        self._application = application
        self._is_kept = is_kept  # memory:// keeps nothing

    def has_stores(self) -> bool:
        """Whether there is a store of any partition."""
        return self.path.is_dir() and any(child.name.isdecimal() for child in self.path.iterdir())

    def numbers(self) -> list[int]:
        """Numbers that there is a store of, the one that was used last first."""
        try:
            folders = [child for child in self.path.iterdir() if child.name.isdecimal()]
        except FileNotFoundError:
            return []
        return [int(folder.name) for folder in sorted(folders, key=lambda folder: folder.stat().st_mtime, reverse=True)]

    def read(self) -> Remembered | None:
        """The owner of the stores; None where there are none, or from before owners were written down."""
        file = self.path / FILE
        try:
            return msgspec.json.decode(file.read_bytes(), type=Remembered)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as error:
            raise NotTheOwner(
                f"{file} cannot be read ({error}), so nobody can say which installation the stores beside it belong "
                f"to. Move the folder {self.path} aside: the worker restores its stores from the changelogs."
            ) from error

    def write(self, remembered: Remembered) -> None:
        """Remember the owner; raises NotTheOwner when the folder cannot be written."""
        if not self._is_kept or self.read() == remembered:
            return
        scratch = self.path / f"{FILE}.new"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                file.write(msgspec.json.encode(remembered))
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self.path / FILE)
        except OSError as error:
            raise NotTheOwner(
                f"{self.path} cannot be written ({error.strerror}). Give this user the rights, free space, or set "
                f"{self._application.variable('data_dir')}."
            ) from error
