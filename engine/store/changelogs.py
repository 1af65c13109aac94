"""Changelogs held against a store: is each one still the one the store was made from, and which of the two has more?

| the changelog of a table | the store | then |
|---|---|---|
| begins at its beginning | has none of it | is restored from it |
| was shortened at its beginning, and never repaired | has none of it | refused: rows would be missing in silence |
| was shortened and repaired, so that it has every row | has none of it | is restored from it |
| has all from the store's position on | follows it | goes on; a fault while it is shortened and not repaired |
| ends before the store's position | is ahead | refused: the log has lost records, or is an older copy |
| ends before the store's position, and the loss of the log's end was accepted | is ahead | restored anew |
| begins behind the store's position | lacks what is between | restored anew if it was repaired, else refused |
| is another topic of that name | is of the earlier one | restored anew if it was repaired, else refused |
| has all, but deletions may be gone from it | is too old | restored anew if every changelog is whole, else refused |
| has all that was committed, and says so | may have more | restored anew if every changelog is whole, else refused |

A store is given up for changelogs that have every row and are at least as new, and for nothing else. A changelog is
whole when no record was removed from its beginning: compaction never moves the offset at which a topic begins,
retention and DeleteRecords do. A repair writes all rows anew and then an identity that says from which offset on they
are there, so that a shortened changelog is whole again from that offset on.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import NamedTuple, Protocol

from engine.declare.application import Application
from engine.log.ports import Reader, Record
from engine.store.store import ChangelogMark

# No row has this key: text keys are UTF-8, and the other codecs begin with a small number.
IDENTITY_KEY = b"\xffidentity"
NO_IDS: Mapping[str, str] = {}
UNDER_REPAIR = "under repair"
"""Stands for the id of a topic in a store from which a changelog is being written anew."""
NAMED_MAX = 3


class Standing(Enum):
    """How a store stands to a changelog."""

    FOLLOWS = "follows"
    EMPTY = "empty"  # it has none of it, and the changelog has lost its beginning
    BEHIND = "behind"  # records were removed that it has not got
    AHEAD = "ahead"
    OTHER = "other"  # it was made from another topic
    OLD = "old"  # deletions that it has missed may be gone
    DOUBTED = "doubted"  # it may have rows of a transaction that was aborted after all
    UNDER_REPAIR = "under repair"  # the changelog was being written anew from it


class Changelog(NamedTuple):
    """A changelog's partition: its topic's id, its first and next offset, how far the store is in it, how they stand.

    `id` is empty where the broker does not tell one.
    """

    topic: str
    id: str
    start: int
    end: int
    mark: ChangelogMark
    standing: Standing = Standing.FOLLOWS

    @property
    def is_whole(self) -> bool:
        """Whether a new store can be restored from it, as far as this store knows."""
        return has_everything(self.mark.identity, self.start)


class ChangelogRefused(Exception):
    """A partition does not start, because it would lose rows without anybody knowing."""

    def __init__(self, partition: int, changelogs: Sequence[Changelog]) -> None:
        self.changelogs = changelogs
        self.detail = f"partition {partition} does not start: {_named(_sentence(partition, c) for c in changelogs)}"
        self.partition = partition
        super().__init__(self.detail)

    def advice(self, application: Application) -> str:
        """What to do about it, without losing more."""
        return _advice(self.partition, {changelog.standing for changelog in self.changelogs}, application)


def new_identity(complete_from: int | None = None) -> bytes:
    """The value of an identity record; `complete_from` is the offset from which on a repair has written every row."""
    name = uuid.uuid4().hex
    return name.encode() if complete_from is None else f"{name}@{complete_from}".encode()


def doubtful_identity(before: bytes) -> bytes:
    """The value of an identity record that lets every store be restored anew which does not know it yet.

    `before` is the identity until now: where a repaired changelog has every row is said again.
    """
    return b"!".join((uuid.uuid4().hex.encode(), before[before.find(b"@") :] if b"@" in before else b""))


def casts_doubt(records: Iterable[Record], known: bytes) -> bool:
    """Whether a store that knows the identity `known` meets one here that it cannot be trusted after."""
    return bool(known) and any(r.key == IDENTITY_KEY and b"!" in (r.value or b"") and r.value != known for r in records)


def complete_from(identity: bytes) -> int | None:
    """The offset from which on a repaired changelog has every row; None for one that was not repaired."""
    _, at, offset = identity.partition(b"@")
    return int(offset) if at else None


def has_everything(identity: bytes, start: int) -> bool:
    """Whether a changelog that begins at the offset `start` and has this identity has every row."""
    offset = complete_from(identity)
    return start == 0 or (offset is not None and offset >= start)


class Marks(Protocol):
    """A store, or what is known of one."""

    def mark(self, changelog: str) -> ChangelogMark:
        """How far `changelog` is applied."""


async def look(store: Marks, reader: Reader, ids: Mapping[str, str]) -> list[Changelog]:
    """Every changelog of the reader as it stands to the store; `ids` are the topics' ids, as far as they are known."""
    bounds = await reader.bounds()
    found = await _identities_found(store, reader, bounds)
    changelogs = []
    for topic, (start, end) in bounds.items():
        changelog = Changelog(topic, ids.get(topic, ""), start, end, store.mark(topic))
        changelogs.append(changelog._replace(standing=judge(changelog, found.get(topic))))
    return changelogs


def judge(changelog: Changelog, found: Record | None) -> Standing:
    """How the store stands to a changelog; `found` is what is at the place where the store saw the identity record."""
    mark = changelog.mark
    if mark == ChangelogMark():
        return Standing.FOLLOWS if changelog.start == 0 else Standing.EMPTY
    if mark.topic_id == UNDER_REPAIR:
        return Standing.UNDER_REPAIR
    if _is_other(changelog, found):
        return Standing.OTHER
    if mark.position > changelog.end:
        return Standing.AHEAD
    return Standing.FOLLOWS if mark.position + mark.markers >= changelog.start else Standing.BEHIND


def _is_other(changelog: Changelog, found: Record | None) -> bool:
    """Whether the store was made from another topic.

    A topic whose id is the same is the same, even if the identity record is no longer where it was: a repair has
    replaced it. Without an id it has to be there, unless it lay in what was removed.
    """
    mark = changelog.mark
    if mark.topic_id and changelog.id and mark.topic_id != changelog.id:
        return True
    if not mark.identity or mark.identity_offset < changelog.start or mark.identity_offset >= changelog.end:
        return False
    if found is not None and found.key == IDENTITY_KEY and found.offset == mark.identity_offset:
        return found.value != mark.identity
    return not (mark.topic_id and changelog.id)


async def _identities_found(
    store: Marks, reader: Reader, bounds: Mapping[str, tuple[int, int]]
) -> Mapping[str, Record | None]:
    """The first record from where the store saw each identity on; None where there is none to be read."""
    wanted = {
        topic: mark.identity_offset
        for topic, (start, end) in bounds.items()
        if (mark := store.mark(topic)).identity and start <= mark.identity_offset < end
    }
    for topic, (_, end) in bounds.items():
        reader.seek(topic, wanted.get(topic, end))
    found: dict[str, Record | None] = {}
    while wanted:
        for topic, (records, position) in (await reader.fetch()).items():
            if topic in wanted and (records or position > wanted[topic]):
                found[topic] = records[0] if records else None
                del wanted[topic]
    return found


async def newest_identities(reader: Reader, changelogs: Iterable[Changelog]) -> Mapping[str, bytes]:
    """The newest identity of these changelogs, read from their beginning; only a repair makes a second one."""
    pending = {changelog.topic: changelog.end for changelog in changelogs if changelog.start < changelog.end}
    starts = {changelog.topic: changelog.start for changelog in changelogs}
    for topic, (_, end) in (await reader.bounds()).items():
        reader.seek(topic, starts[topic] if topic in pending else end)
    identities: dict[str, bytes] = {}
    while pending:
        for topic, (records, position) in (await reader.fetch()).items():
            if topic not in pending:
                continue
            for record in records:
                if record.key == IDENTITY_KEY:
                    identities[topic] = record.value or b""
            if position >= pending[topic]:
                del pending[topic]
    return identities


def _named(sentences: Iterable[str]) -> str:
    """Some of the sentences, and how many there are more."""
    all_of_them = list(sentences)
    more = len(all_of_them) - NAMED_MAX
    return "; ".join([*all_of_them[:NAMED_MAX], *([f"and {more} changelogs more"] if more > 0 else [])])


def _sentence(partition: int, changelog: Changelog) -> str:
    """What is the matter with a changelog."""
    name, mark = f"{changelog.topic}/{partition}", changelog.mark
    match changelog.standing:
        case Standing.EMPTY:
            return (
                f"the beginning of {name} was removed (it begins at offset {changelog.start}), and this worker has no "
                "store of it: rows would be missing"
            )
        case Standing.BEHIND:
            return (
                f"records of {name} were removed before the store had them, offsets {mark.position} to "
                f"{changelog.start - 1}"
            )
        case Standing.AHEAD:
            return (
                f"{name} ends at offset {changelog.end} and the store is at {mark.position}: the log has lost records, "
                "or an older copy of it was put back"
            )
        case Standing.OTHER:
            return f"{name} is not the topic that the store was made from: it was deleted and created anew"
        case Standing.OLD:
            return (
                f"the store is too old for {name}, deletions that it has missed may be gone, and the beginning of that "
                f"was removed (it begins at offset {changelog.start})"
            )
        case Standing.DOUBTED:
            return (
                f"the store may have rows that were never committed to {name}, and the beginning of that was removed "
                f"(it begins at offset {changelog.start})"
            )
        case Standing.UNDER_REPAIR:
            return f"{name} was being written anew from the store when that was interrupted"
    return f"the beginning of {name} was removed (it begins at offset {changelog.start})"


def _advice(partition: int, standings: set[Standing], application: Application) -> str:
    """What to do about a partition that is refused, without losing more."""
    another = (
        f"start the worker whose data folder has the store of partition {partition}, or put a backup of that folder in "
        "its place"
    )
    from_store = application.command(f"repair {partition} --from store")
    if standings == {Standing.EMPTY}:
        anew = application.command(f"repair {partition} --from events")
        return f"{another}. If there is none, rows of projections can be made anew: {anew}"
    if Standing.BEHIND in standings:
        without = application.command(f"repair {partition} --from store --accept-loss")
        return f"{another}: a newer store has what was removed. If there is none, {without} goes on without it"
    if standings == {Standing.UNDER_REPAIR}:
        return f"go on with it: {from_store}"
    from_changelog = application.command(f"repair {partition} --from changelog")
    return (
        f"keep the data folder: its store is the better copy. {from_store} writes its rows to the changelog; or "
        f"{another}. If the log was replaced on purpose, {from_changelog} follows it, and puts the store aside"
    )


def only_copy_texts(partition: int, changelogs: Sequence[Changelog], application: Application) -> tuple[str, str]:
    """Finding and advice about changelogs from which the store of a partition could not be restored again."""
    named = _named(_sentence(partition, changelog._replace(standing=Standing.FOLLOWS)) for changelog in changelogs)
    return (
        f"the store of partition {partition} is the only copy of its rows: {named}",
        "keep the data folder, and write the changelog anew with "
        f"{application.command(f'repair {partition} --from store')}",
    )
