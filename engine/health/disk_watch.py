"""Looks after the room on the disk: nothing more is taken before it is full, and all goes on when there is room."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from engine.declare.settings import Settings
from engine.health.faults import Fault, FaultKey, Faults
from engine.work.background import repeat

INTERVAL_S: Final = 0.5
RESERVE_SHARE_MAX: Final = 16  # of a small disk the reserve is a sixteenth at most
ROOM_AGAIN: Final = 1.25  # times the reserve: no going back and forth at the limit
KEY: Final[FaultKey] = ("disk", "room")


class Room(NamedTuple):
    """Bytes that are free on a disk, and how many of them are kept back."""

    free_bytes: int
    reserve_bytes: int


class DiskWatch:
    """Takes note when the disk of a folder has no more than its reserve left.

    `suspend` is called then, so that the reserve is there for what is under way, and `resume` when there is room again.
    Where the settings keep nothing on the disk nothing is looked at.
    """

    def __init__(
        self,
        settings: Settings,
        faults: Faults,
        suspend: Callable[[], Awaitable[None]],
        resume: Callable[[], None],
    ) -> None:
        self.refusal: str | None = None
        """Why nothing is taken now; None while there is room."""
        self._settings = settings
        self._folder = None if settings.transport == "memory" else settings.data_dir
        self._reserve_bytes = settings.disk_reserve
        self._faults = faults
        self._suspend = suspend
        self._resume = resume
        self._watch: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to look, at once."""
        if self._folder is not None and self._watch is None:
            self._watch = asyncio.create_task(
                repeat(self._look, "watch of the disk", INTERVAL_S), name="watch of the disk"
            )

    async def stop(self) -> None:
        """Look no more."""
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
            self._watch = None

    async def _look(self) -> float:
        if (room := self._room()) is not None:
            await self._take_note(room)
        return INTERVAL_S

    async def _take_note(self, room: Room) -> None:
        if self.refusal is None and room.free_bytes < room.reserve_bytes:
            self.refusal = f"only {room.free_bytes >> 20} MiB are free on the disk of {self._folder}"
            detail = f"{self.refusal}: nothing more is accepted or committed"
            self._faults.report(KEY, Fault("disk", detail, self._advice()))
            await self._suspend()
        elif self.refusal is not None and room.free_bytes >= room.reserve_bytes * ROOM_AGAIN:
            self.refusal = None
            self._faults.clear(KEY)
            self._resume()

    def _advice(self) -> str:
        variable = self._settings.variable
        return (
            f"free space, or give {variable('data_dir')} a larger disk; reads go on, nothing that was accepted is "
            f"lost, and the worker goes on by itself when there is room ({variable('disk_reserve')})"
        )

    def _room(self) -> Room | None:
        """The room there is; None where that cannot be said, as when the folder is gone, which others notice."""
        assert self._folder is not None
        try:
            usage = shutil.disk_usage(self._folder)
        except OSError:
            return None
        return Room(usage.free, min(self._reserve_bytes, usage.total // RESERVE_SHARE_MAX))
