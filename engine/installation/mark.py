"""The mark of an application in a log: who owns which topics, since when and why."""

from __future__ import annotations

import getpass
import socket
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Final, NamedTuple

import msgspec

from engine.declare.application import Application
from engine.log.ports import TransportUnusable

INSTALLATION_TOPIC: Final = "installation"
TRANSACTIONAL_ID: Final = "installation"  # no application's: theirs end with a partition number
MOVES_MAX: Final = 50  # what a record may hold of its history


class NotTheOwner(TransportUnusable):
    """The topics belong to another application or installation, or to releases that this one may not run beside."""


class Release(NamedTuple):
    """A release of the software: its name for people, its level, and the oldest level that may run beside it.

    A level is raised by a release whose workers write what those of the level before do not understand.
    """

    name: str
    level: int
    oldest_beside: int


def release_of(application: Application) -> Release:
    """This release of an application, by the level of the engine in it."""
    # Level 1 wrote no marks; its workers go on beside this release, which writes nothing that they cannot read.
    return Release(application.release, level=2, oldest_beside=1)


class Move(msgspec.Struct, frozen=True, rename="camel"):
    """The ownership was moved on purpose: from which owner, when, by whom and why."""

    from_app_id: str
    from_installation: str
    at: str
    by: str
    reason: str


class Mark(msgspec.Struct, frozen=True, rename="camel", kw_only=True):
    """An application's record in the topic `installation`; its key is the application id.

    `level` and `oldest_beside` are those of the newest release that has run; `by` is user and machine of the worker
    that wrote the first mark of the installation.
    """

    app_id: str
    installation: str
    topics: tuple[str, ...]
    release: str
    level: int
    oldest_beside: int
    since: str
    by: str
    moves: tuple[Move, ...] = ()

    @property
    def owner(self) -> str:
        """The owner in words."""
        return f"application {self.app_id!r} (installation {self.installation}, release {self.release})"


Marks = Mapping[str, Mark]
"""The marks in a log by application id."""

encode_mark = msgspec.json.Encoder().encode
decode_mark = msgspec.json.Decoder(Mark).decode


def first_mark(app_id: str, installation: str, topics: Iterable[str], release: Release) -> Mark:
    """The mark of an installation that has had none."""
    return Mark(
        app_id=app_id,
        installation=installation,
        topics=tuple(sorted(topics)),
        release=release.name,
        level=release.level,
        oldest_beside=release.oldest_beside,
        since=now_text(),
        by=user_and_machine(),
    )


def renewed(mark: Mark, topics: Iterable[str], release: Release) -> Mark:
    """The mark with what a worker of `release` adds: topics, and its level when it is the newest so far."""
    owned = tuple(sorted({*mark.topics, *topics}))
    if release.level <= mark.level:
        return msgspec.structs.replace(mark, topics=owned)
    return msgspec.structs.replace(
        mark, topics=owned, release=release.name, level=release.level, oldest_beside=release.oldest_beside
    )


def now_text() -> str:
    """The present time in UTC, to the second, as ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def user_and_machine() -> str:
    """The user that runs this process, and where."""
    try:
        user = getpass.getuser()
    except (OSError, KeyError):  # a container may run under a number that has no name
        user = "unknown"
    return f"{user}@{socket.gethostname()}"
