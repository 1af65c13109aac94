"""May a worker start on a log? Pure decisions about the marks that are there and what its data folder remembers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from engine.declare.application import Application
from engine.health.check import some
from engine.installation.folder import Remembered
from engine.installation.mark import Mark, Marks, Release
from engine.installation.unmarked import Unmarked


class Applicant(NamedTuple):
    """A worker that wants to start: what it is, the topics it owns, and its data folder.

    `has_log` says whether the log has a changelog of its application.
    """

    application: Application
    app_id: str
    topics: frozenset[str]
    release: Release
    stores: Path
    remembered: Remembered | None
    has_stores: bool
    has_log: bool

    @property
    def places(self) -> str:
        """The settings that say which log it works on, and where its stores are."""
        return f"{self.application.variable('broker')} or {self.application.variable('data_dir')}"


def other_owners(applicant: Applicant, marks: Marks, unmarked: Unmarked) -> Mapping[str, frozenset[str]]:
    """The applicant's topics that belong to other applications, by application id."""
    owned = {app_id: frozenset(mark.topics) for app_id, mark in marks.items()}
    shared = {app_id: topics & applicant.topics for app_id, topics in (dict(unmarked) | owned).items()}
    return {app_id: topics for app_id, topics in shared.items() if topics and app_id != applicant.app_id}


def refusal(applicant: Applicant, marks: Marks, unmarked: Unmarked) -> str | None:
    """Why the applicant may not start, with what to do; None when it may."""
    others = other_owners(applicant, marks, unmarked)
    if others:
        return other_application(applicant, marks, others)
    mark, remembered = marks.get(applicant.app_id), applicant.remembered
    if remembered is not None and remembered.app_id != applicant.app_id:
        return other_stores(applicant, remembered)
    if mark is None:
        return lost_log(applicant)
    if remembered is not None and remembered.installation != mark.installation:
        return other_installation(applicant, remembered, mark)
    return other_release(applicant.release, mark)


def other_application(applicant: Applicant, marks: Marks, others: Mapping[str, Iterable[str]]) -> str:
    """The topics are another application's."""
    app_id, topics = next(iter(sorted(others.items())))
    owner = marks[app_id].owner if app_id in marks else f"application {app_id!r}, which has written no mark yet"
    variable = applicant.application.variable
    return (
        f"{some(topics)} belong to {owner}; this worker is application {applicant.app_id!r}, and would process every "
        f"kept record again: decide, charge and count. Set {variable('app_id')}={app_id}, or {variable('broker')} (on "
        f"embedded://: {variable('data_dir')}) to a log of its own. {_adopt(applicant.application)} moves "
        "topics that hold no records yet."
    )


def other_stores(applicant: Applicant, remembered: Remembered) -> str:
    """The stores are another application's."""
    return (
        f"the stores in {applicant.stores} belong to application {remembered.app_id!r} (installation "
        f"{remembered.installation}); this worker is application {applicant.app_id!r}. Set "
        f"{applicant.application.variable('app_id')}={remembered.app_id}, or "
        f"{applicant.application.variable('data_dir')} to a folder of its own."
    )


def lost_log(applicant: Applicant) -> str | None:
    """There are stores, and no log that they could be made of."""
    if applicant.has_log or not applicant.has_stores:
        return None
    owner = f"application {applicant.app_id!r}"
    if applicant.remembered is not None:
        owner += f" (installation {applicant.remembered.installation})"
    return (
        f"the stores in {applicant.stores} belong to {owner}, of which this log knows nothing: its changelogs are not "
        f"there. Correct {applicant.places}, or restore the log from a backup. To begin with an empty log "
        f"on purpose, move {applicant.stores} aside, and keep it: the state may be nowhere else."
    )


def other_installation(applicant: Applicant, remembered: Remembered, mark: Mark) -> str:
    """The stores are of one installation, the log of another."""
    return (
        f"the log belongs to {mark.owner} since {mark.since}; the stores in {applicant.stores} belong to installation "
        f"{remembered.installation} of it. To work for the log's owner, move {applicant.stores} aside: the worker "
        f"restores from the changelogs. If this is the wrong log, correct {applicant.places}. To make "
        f"installation {remembered.installation} the owner on purpose: {_adopt(applicant.application)}."
    )


def other_release(release: Release, mark: Mark) -> str | None:
    """A newer release has run that this one may not run beside."""
    if release.level >= mark.oldest_beside:
        return None
    return (
        f"this worker is release {release.name} (level {release.level}); release {mark.release} (level {mark.level}) "
        f"has run on this log, and nothing below level {mark.oldest_beside} may run beside or after it: it would not "
        "understand what was written. Start the newer release."
    )


def old_workers(applicant: Applicant, mark: Mark | None, workers: Iterable[str]) -> str | None:
    """Workers of an older release run, beside which this one may not run."""
    running = sorted(workers)
    level = mark.level if mark is not None else 1
    if not running or level >= applicant.release.oldest_beside:
        return None
    name = f"release {mark.release}" if mark is not None else "a release without marks"
    return (
        f"workers of {name} (level {level}) run at {some(running)}; release {applicant.release.name} may run beside "
        f"level {applicant.release.oldest_beside} and above. Stop all of them first, or bring out a release between."
    )


def loss(mark: Mark, topics: frozenset[str], release: Release, marks: Marks, application: Application) -> str | None:
    """How a running worker has lost the ownership that `mark` gave it; None while it has it."""
    present = marks.get(mark.app_id)
    others = [other for app_id, other in marks.items() if app_id != mark.app_id and topics & set(other.topics)]
    owner = others[0] if others else present
    if owner is None or (owner is present and owner.installation == mark.installation):
        return other_release(release, present) if present is not None else None
    told = f": {owner.moves[-1].reason} ({owner.moves[-1].by}, {owner.moves[-1].at})" if owner.moves else ""
    return (
        f"the topics belong to {owner.owner} now{told}. This worker, of {mark.owner}, ends; nothing that it had not "
        f"committed before counts. To take the ownership back on purpose: {_adopt(application)}."
    )


def _adopt(application: Application) -> str:
    return application.command("adopt --reason TEXT")
