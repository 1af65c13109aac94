"""The assignor: gives partition numbers, not topics, so that a number is never split over two workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from faust.assignor.client_assignment import ClientAssignment, ClientMetadata
from faust.assignor.partition_assignor import PartitionAssignor

from engine.faust.driver import engine_of

NO_STORES: Mapping[str, Sequence[int]] = {}
STORES = "stores"  # stands for a topic where members say of which numbers they have a store


def distribute(
    count: int,
    members: Iterable[str],
    owned: Mapping[str, Iterable[int]],
    stored: Mapping[str, Sequence[int]] = NO_STORES,
) -> dict[str, list[int]]:
    """Numbers 0 to count - 1 over `members`, evenly, each staying where it is if its owner may keep it.

    What has to move goes to a member that has a store of it, if one has room: `stored`, the newest store first. The
    result depends on the arguments alone; sizes differ by at most one.
    """
    names = sorted(members)
    small, larger = divmod(count, len(names))
    has = {name: set(owned.get(name, ())) for name in names}
    # What newcomers had before is what others give up for them.
    wanted = {n for name in names for n in list(stored.get(name, ()))[: max(0, small - len(has[name]))]}
    by_claim = sorted(names, key=lambda name: (-len(has[name]), len(has[name] & wanted), name))
    room = {name: small + (1 if index < larger else 0) for index, name in enumerate(by_claim)}
    shares: dict[str, list[int]] = {name: [] for name in names}
    free = set(range(count))

    def give(name: str, numbers: Iterable[int]) -> None:
        for number in numbers:
            if number in free and len(shares[name]) < room[name]:
                shares[name].append(number)
                free.remove(number)

    for name in by_claim:
        give(name, sorted(has[name], key=lambda number: (number in wanted, number)))
    for name in by_claim:
        give(name, stored.get(name, ()))
    for name in by_claim:
        give(name, sorted(free))
    return {name: sorted(numbers) for name, numbers in shares.items()}


class NumberAssignor(PartitionAssignor):
    """Faust's assignor with the decision replaced: each number as a whole, whatever the members' subscriptions.

    During a rolling upgrade that adds a topic, the owner of a number gets that number of all topics it subscribes to;
    a topic it does not know waits until the number moves to a member that does, or the owner is upgraded.
    """

    @property
    def _metadata(self) -> ClientMetadata:
        """What this member tells the group's leader: what it owns, and of which numbers it has a store."""
        metadata = super()._metadata
        stored = engine_of(self.app).stored_numbers()
        metadata.assignment = ClientAssignment(actives=self._assignment.actives, standbys={STORES: stored})
        return metadata

    def _perform_assignment(self, cluster: Any, member_metadata: Any) -> Any:
        clients = {member: self._get_client_metadata(meta) for member, meta in member_metadata.items()}
        subscribed = {member: set(meta.subscription) for member, meta in member_metadata.items()}
        self._update_member_urls(clients)
        topics = set().union(*subscribed.values())
        counts = {topic: len(cluster.partitions_for_topic(topic) or ()) for topic in topics}
        owned = {
            member: {number for numbers in meta.assignment.actives.values() for number in numbers}
            for member, meta in clients.items()
        }
        stored = {member: meta.assignment.standbys.get(STORES, []) for member, meta in clients.items()}
        shares = distribute(max(counts.values(), default=0), member_metadata, owned, stored)
        assignments = {
            member: ClientAssignment(
                actives={
                    topic: kept
                    for topic in sorted(subscribed[member])
                    if (kept := [number for number in numbers if number < counts[topic]])
                },
                standbys={},
            )
            for member, numbers in shares.items()
        }
        return self._protocol_assignments(
            assignments,
            self._get_changelog_distribution(assignments),
            self._get_external_topic_distribution(assignments),
            dict.fromkeys(counts, 0),
        )

    def owner_url(self, number: int) -> str | None:
        """Web address of the worker that owns `number`, None while nobody does."""
        for url, topics in self.external_topic_distribution.items():
            if any(number in numbers for numbers in topics.values()):
                return str(url)
        return None
