"""Partition numbers are given as a whole: every number once, evenly, where it was, whatever members subscribe to."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from aiokafka.cluster import ClusterMetadata
from hypothesis import given
from hypothesis import strategies as st

from engine.faust.app import EngineApp
from engine.faust.assignor import NumberAssignor, distribute
from streams.app import create_app
from tests.apps import make_settings

MEMBERS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6, unique=True)
STORES = st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(0, 16), max_size=4), max_size=4)
CLAIMS = st.dictionaries(st.sampled_from("abcdefgh"), st.lists(st.integers(0, 20), max_size=12))


@given(st.integers(0, 16), MEMBERS, CLAIMS, STORES)
def test_every_number_has_one_owner_and_shares_are_even(
    count: int, members: list[str], owned: dict[str, list[int]], stored: dict[str, list[int]]
) -> None:
    shares = distribute(count, members, owned, stored)
    assert sorted(number for numbers in shares.values() for number in numbers) == list(range(count))
    assert set(shares) == set(members)
    sizes = [len(numbers) for numbers in shares.values()]
    assert max(sizes) - min(sizes) <= 1


@given(st.integers(0, 16), MEMBERS, CLAIMS, STORES)
def test_the_result_does_not_depend_on_the_order_of_members(
    count: int, members: list[str], owned: dict[str, list[int]], stored: dict[str, list[int]]
) -> None:
    reordered = {name: list(reversed(owned[name])) for name in sorted(owned, reverse=True)}
    assert distribute(count, members, owned, stored) == distribute(count, reversed(members), reordered, stored)


@given(st.integers(0, 16), MEMBERS, st.randoms(use_true_random=False), MEMBERS, STORES)
def test_a_number_stays_where_it_is_while_shares_allow(
    count: int, before: list[str], random: Any, after: list[str], stored: dict[str, list[int]]
) -> None:
    owned: dict[str, list[int]] = {name: [] for name in before}
    for number in range(count):
        owned[random.choice(before)].append(number)
    shares = distribute(count, after, owned, stored)
    for name in after:
        had, has = set(owned.get(name, ())), set(shares[name])
        if len(had) <= count // len(after):
            assert had <= has  # it may keep all it has
        else:
            assert has <= had  # it has enough and gets none of others
    assert distribute(count, after, shares, stored) == shares


def test_a_member_that_comes_back_gets_what_it_has_a_store_of() -> None:
    owned = {"a": [0, 1], "b": [2, 3]}
    for number in range(4):
        shares = distribute(4, "abc", owned, {"c": [number, 1 - number % 2]})
        assert shares["c"] == [number]
        assert all(set(shares[name]) <= set(owned[name]) for name in "ab")


def test_what_a_member_leaves_goes_where_there_is_a_store_of_it() -> None:
    stored = {"a": [2, 0], "b": [3, 1]}
    assert distribute(4, "ab", {"a": [0], "b": [1]}, stored) == {"a": [0, 2], "b": [1, 3]}
    stored = {"a": [3, 0], "b": [2, 1]}
    assert distribute(4, "ab", {"a": [0], "b": [1]}, stored) == {"a": [0, 3], "b": [1, 2]}


def test_stores_of_two_members_do_not_make_them_fight() -> None:
    stored = {"a": [0, 1], "b": [0, 1], "c": [0, 1]}
    shares = distribute(2, "ab", {"a": [0], "b": [1]}, stored)
    assert shares == {"a": [0], "b": [1]}
    assert sorted(distribute(3, "abc", {}, stored).values()) == [[0], [1], [2]]


def cluster(topics: dict[str, int]) -> ClusterMetadata:
    """Metadata of a cluster with these topics and their numbers of partitions."""
    metadata = ClusterMetadata()
    metadata._partitions = {topic: dict.fromkeys(range(count)) for topic, count in topics.items()}
    return metadata


class Group:
    """Members of a group with real assignors and Kafka's own metadata between them."""

    def __init__(self, tmp_path: Path, topics: dict[str, int]) -> None:
        self.cluster = cluster(topics)
        self.members: dict[str, tuple[EngineApp, set[str]]] = {}
        self._tmp_path = tmp_path

    def assignor(self, name: str) -> NumberAssignor:
        assignor = self.members[name][0].assignor
        assert isinstance(assignor, NumberAssignor)
        return assignor

    def join(self, name: str, *topics: str) -> None:
        app = create_app(make_settings("memory://", self._tmp_path), services=())
        self.members[name] = app, set(topics)

    def leave(self, name: str) -> None:
        del self.members[name]

    def rebalance(self, leader: str | None = None) -> dict[str, dict[str, list[int]]]:
        """One rebalance as the group's leader decides it; what each member then has by topic."""
        metadata = {name: self.assignor(name).metadata(topics) for name, (_, topics) in self.members.items()}
        assigned = self.assignor(leader or min(self.members)).assign(self.cluster, metadata)
        for name in self.members:
            self.assignor(name).on_assignment(assigned[name])
        return {name: {topic: sorted(numbers) for topic, numbers in assigned[name].assignment} for name in self.members}


def numbers_of(assigned: dict[str, dict[str, list[int]]]) -> dict[str, set[int]]:
    return {name: {n for numbers in topics.values() for n in numbers} for name, topics in assigned.items()}


def test_members_with_different_topics_own_whole_numbers(tmp_path: Path) -> None:
    group = Group(tmp_path, {"old": 8, "both": 8, "new": 8})
    group.join("a", "old", "both")
    group.join("b", "old", "both", "new")
    group.join("c", "old", "both", "new")
    for leader in ("a", "b"):
        assigned = group.rebalance(leader)
        numbers = numbers_of(assigned)
        assert sorted(n for some in numbers.values() for n in some) == list(range(8))
        for name, (_, topics) in group.members.items():
            assert assigned[name] == {topic: sorted(numbers[name]) for topic in topics}


def test_a_rolling_upgrade_gives_whole_numbers_at_every_step(tmp_path: Path) -> None:
    group = Group(tmp_path, {"old": 8, "new": 8})
    for name in "ab":
        group.join(name, "old")
    before = numbers_of(group.rebalance())
    assert numbers_of(group.rebalance()) == before
    group.leave("a")
    assert numbers_of(group.rebalance()) == {"b": set(range(8))}
    group.join("c", "old", "new")
    with_new = group.rebalance()
    numbers = numbers_of(with_new)
    assert with_new["c"] == {topic: sorted(numbers["c"]) for topic in ("old", "new")}
    assert with_new["b"] == {"old": sorted(numbers["b"])}
    assert numbers["b"] | numbers["c"] == set(range(8))
    assert not numbers["b"] & numbers["c"]


def test_every_member_learns_who_owns_a_number(tmp_path: Path) -> None:
    group = Group(tmp_path, {"old": 4})
    group.join("a", "old")
    group.join("b", "old")
    numbers = numbers_of(group.rebalance())
    urls = {name: str(app.conf.canonical_url) for name, (app, _) in group.members.items()}
    for member in group.members:
        assignor = group.assignor(member)
        for name, owned in numbers.items():
            assert {assignor.owner_url(number) for number in owned} == {urls[name]}
        assert assignor.owner_url(99) is None


def test_members_say_what_they_have_a_store_of_the_one_used_last_first(tmp_path: Path) -> None:
    group = Group(tmp_path, {"old": 4})
    group.join("a", "old")
    group.join("b", "old")
    group.rebalance()
    group.join("c", "old")
    engine = group.members["c"][0].engine
    for used_at, number in enumerate((2, 0, 3)):
        engine.store_path(number).mkdir(parents=True)
        os.utime(engine.store_path(number), (used_at, used_at))
    try:
        assert numbers_of(group.rebalance())["c"] == {3}
    finally:
        shutil.rmtree(engine.store_path(0).parent)


def test_a_topic_that_is_not_there_yet_is_left_out(tmp_path: Path) -> None:
    group = Group(tmp_path, {"old": 2})
    group.join("a", "old", "missing")
    assert group.rebalance() == {"a": {"old": [0, 1]}}
