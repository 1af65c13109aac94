"""Marks of records whose handlers could not be interrupted: the process was ended, and a mark is all that is left.

They are files, `{data_dir}/stuck/{partition}.json`, because nothing can be committed any more. The partition's next
life on this worker makes dead letters of marked records instead of handling them, and removes a mark once its record is
passed. Several marks are kept: otherwise two stuck records could forget each other in turns.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from engine.declare.errors import HandlerTimeout
from engine.declare.partition import Partition
from engine.declare.settings import Settings
from engine.declare.timers import TIMERS, TimerKey, kind_of_topic
from engine.declare.unit_of_work import UnitOfWork
from engine.failures.lanes import LANES, LaneKey
from engine.log.ports import Record

log = logging.getLogger(__name__)

STACK_BYTES_MAX = 16_384


class StuckMark(msgspec.Struct, frozen=True):
    """One record that could not be got out of its handler; `what` and `stack` are for people.

    A timer has the offset -1, and the time it was due as `timestamp_ms`.
    """

    agent: str
    topic: str
    partition: int
    offset: int
    timestamp_ms: int
    key: str
    what: str
    stack: str


class StuckRecords:
    """The marks of one partition; false while there are none, which is nearly always. Kept only where records are."""

    def __init__(self, settings: Settings, number: int) -> None:
        self.number = number
        self._path = None if settings.transport == "memory" else settings.data_dir / "stuck" / f"{number}.json"
        self._marks = _load(self._path) if self._path is not None else []

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._marks)

    def check(self, agent: str, topic: str, record: Record) -> None:
        """Raise HandlerTimeout for a record that is marked."""
        for mark in self._marks:
            if (mark.agent, mark.topic, *_identity(mark)) == (agent, topic, *_identity(record)):
                error = HandlerTimeout(mark.what)
                error.add_note(f"The main thread was here:\n{mark.stack}")
                raise error

    def checking(
        self, handle: Callable[[Record, UnitOfWork], str], source: tuple[str, str]
    ) -> Callable[[Record, UnitOfWork], str]:
        """The handler of an agent in a topic (`source`), but for records that are marked."""

        def check_and_handle(record: Record, work: UnitOfWork) -> str:
            self.check(*source, record)
            return handle(record, work)

        return check_and_handle

    def add(self, agent: str, topic: str, record: Record, what: str, stack: str) -> None:
        """Mark a record, so that it survives the end of the process that follows; raises OSError."""
        stack = stack.encode(errors="backslashreplace")[-STACK_BYTES_MAX:].decode(errors="ignore")
        mark = StuckMark(
            agent, topic, self.number, record.offset, record.timestamp_ms, _text_of(record.key), what, stack
        )
        self._marks = [*self._marks, mark]
        self._save()

    def forget_passed(self, partition: Partition) -> None:
        """Remove the marks of what is committed; one that cannot be removed from the disk is, at the next start."""
        left = [mark for mark in self._marks if not _is_passed(mark, partition)]
        if len(left) < len(self._marks):
            self._keep(left)

    def _keep(self, left: list[StuckMark]) -> None:
        self._marks = left
        try:
            self._save()
        except OSError as error:
            log.warning("marks of stuck records of partition %d cannot be removed: %s", self.number, error)

    def forget(self, agent: str) -> None:
        """Remove the marks of an agent, which handles its records no more."""
        if any(mark.agent == agent for mark in self._marks):
            self._keep([mark for mark in self._marks if mark.agent != agent])

    def _save(self) -> None:
        """Replace the file as a whole: there is never half of one."""
        if self._path is None:
            return
        if not self._marks:
            self._path.unlink(missing_ok=True)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True)
        new = self._path.with_suffix(".new")
        new.write_bytes(msgspec.json.format(msgspec.json.encode(self._marks)))
        os.replace(new, self._path)


def _load(path: Path) -> list[StuckMark]:
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[StuckMark])
    except FileNotFoundError:
        return []
    except (OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        log.error("stuck records are not known, and will get stuck again: %s: %s", path, error)
        return []


def _identity(of: Record | StuckMark) -> tuple[int, int, str]:
    """More than the offset: the topic may have been created anew since."""
    return of.offset, of.timestamp_ms, of.key if isinstance(of.key, str) else _text_of(of.key)


def _text_of(key: bytes | None) -> str:
    return (key or b"").decode(errors="backslashreplace")


def _is_passed(mark: StuckMark, partition: Partition) -> bool:
    """Whether a record is behind its agent, and does not wait for another try; or a timer is over."""
    if mark.offset >= 0:
        lane = partition.read(LANES, LaneKey(mark.agent, mark.key.encode()))
        is_waiting = lane is not None and lane.parked is None
        return partition.reached(mark.agent, mark.topic) > mark.offset and not is_waiting
    return partition.read(TIMERS, TimerKey(mark.timestamp_ms, kind_of_topic(mark.topic) or "", mark.key)) is None
