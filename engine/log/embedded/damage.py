"""The embedded log on a disk that does not work: places that cannot be read, and writes that fail."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from engine.log.embedded.errors import (
    LogError,
    LogReadFailed,
    LogUnavailable,
    LogWriteFailed,
    UnknownTopicOrPartition,
)

LOOK_AGAIN_S: Final = 5.0  # a cable, a controller or a file system that is remounted may be back


_OF_THE_DISK: Final = (LogWriteFailed, LogReadFailed, LogUnavailable)


class _Place(NamedTuple):
    offset: int
    text: str


class LogDamage:
    """The first place of each partition that could not be read, by topic and partition; `read` reads one.

    Each is looked at again, every few seconds, until it can be read. `on_found` is called with what was found, once for
    a place, and `on_gone` when it can be read again. `on_unwritable` is called when a write has failed, `on_writable`
    when none has for a while.
    """

    def __init__(self, read: Callable[[str, int, int], object]) -> None:
        self.on_found: Callable[[str, int, LogReadFailed], None] = lambda topic, partition, damage: None
        self.on_gone: Callable[[str, int], None] = lambda topic, partition: None
        self.on_unwritable: Callable[[LogError], None] = lambda error: None
        self.on_writable: Callable[[], None] = lambda: None
        self._read = read
        self._write_failed_at: float | None = None  # monotonic
        self._places: dict[tuple[str, int], _Place] = {}
        self._timer: asyncio.TimerHandle | None = None

    def add(self, topic: str, partition: int, offset: int, damage: LogReadFailed) -> None:
        """Take note of a place that could not be read."""
        self._places[topic, partition] = _Place(offset, str(damage))
        self.on_found(topic, partition, damage)
        self._plan()

    def text(self, topic: str, partition: int) -> str | None:
        """What is wrong with a partition of a topic, None where nothing is known to be."""
        place = self._places.get((topic, partition))
        return place.text if place is not None else None

    def text_of_number(self, partition: int) -> str | None:
        """What is wrong with any topic's partition of this number."""
        return next((place.text for (_, number), place in self._places.items() if number == partition), None)

    def write_failed(self, error: LogError) -> None:
        """Take note of a write that has failed: the next one may succeed, and the one after it fail again."""
        if not isinstance(error, _OF_THE_DISK):
            return  # what was to be written was wrong
        if self._write_failed_at is None:
            self.on_unwritable(error)
        self._write_failed_at = time.monotonic()
        self._plan()

    def close(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _plan(self) -> None:
        if self._timer is None and (self._places or self._write_failed_at is not None):
            self._timer = asyncio.get_running_loop().call_later(LOOK_AGAIN_S, self._look_again)

    def _look_again(self) -> None:
        self._timer = None
        if self._write_failed_at is not None and time.monotonic() > self._write_failed_at + LOOK_AGAIN_S / 2:
            self._write_failed_at = None
            self.on_writable()
        for (topic, partition), place in list(self._places.items()):
            try:
                self._read(topic, partition, place.offset)
            except UnknownTopicOrPartition:
                pass  # it was deleted
            except LogError:
                continue
            del self._places[topic, partition]
            self.on_gone(topic, partition)
        self._plan()
