"""The assignor: gives partition numbers, not topics, so that a number is never split over two workers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from faust.assignor.client_assignment import ClientAssignment
from faust.assignor.partition_assignor import PartitionAssignor


def distribute(count: int, members: Iterable[str], owned: Mapping[str, Iterable[int]]) -> dict[str, list[int]]:
    """Numbers 0 to count - 1 over `members`, evenly, each staying where it is if its owner may keep it.

    The result depends on the arguments alone; sizes differ by at most one.
    """
    names = sorted(members)
    shares: dict[str, list[int]] = {name: [] for name in names}
    small, larger = divmod(count, len(names))
    taken: set[int] = set()
    by_claim = sorted(names, key=lambda name: (-len(set(owned.get(name, ()))), name))
    quota = {name: small + (1 if index < larger else 0) for index, name in enumerate(by_claim)}
    for name in by_claim:
        for number in sorted(set(owned.get(name, ()))):
            if number < count and number not in taken and len(shares[name]) < quota[name]:
                shares[name].append(number)
                taken.add(number)
    free = [number for number in range(count) if number not in taken]
    for name in by_claim:
        while len(shares[name]) < quota[name]:
            shares[name].append(free.pop(0))
    return {name: sorted(numbers) for name, numbers in shares.items()}


class NumberAssignor(PartitionAssignor):
    """Faust's assignor with the decision replaced: each number as a whole, whatever the members' subscriptions.

    During a rolling upgrade that adds a topic, the owner of a number gets that number of all topics it subscribes to;
    a topic it does not know waits until the number moves to a member that does, or the owner is upgraded.
    """

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
        shares = distribute(max(counts.values(), default=0), member_metadata, owned)
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
