"""Caches of decoded rows are bounded together and never answer with an older row."""

from __future__ import annotations

import sys

from hypothesis import given
from hypothesis import strategies as st

from engine.store.cache import ABSENT, CacheBudget, RowCache


def test_a_row_that_is_known_not_to_exist_differs_from_one_that_is_not_cached() -> None:
    cache = RowCache(CacheBudget(10))
    assert cache.get("a") is ABSENT
    cache.put("a", None)
    assert cache.get("a") is None


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    cache = RowCache(CacheBudget(100))
    cache.put("hot", "row")
    for number in range(1000):
        cache.put(number, number)
        assert cache.get("hot") == "row"
    assert cache.get(0) is ABSENT


def test_a_cache_of_nothing_keeps_nothing() -> None:
    cache = RowCache(CacheBudget(0))
    cache.put("a", 1)
    cache.update({"b": 2, "c": 3})
    assert [cache.get(key) for key in "abc"] == [ABSENT] * 3
    assert len(cache) == 0


def test_the_rows_of_a_table_that_is_used_have_the_room_of_all() -> None:
    budget = CacheBudget(300)
    used, idle = RowCache(budget), RowCache(budget)
    for number in range(100):
        idle.put(number, number)
    for number in range(100):
        used.put(number, number)
    for _ in range(3):
        assert [used.get(number) for number in range(100)] == [*range(100)]
        used.update({number: number for number in range(100)})
        used.put(-1, -1)
    for number in range(1000, 1300):
        used.put(number, number)
    assert len(idle) == 0


class Row:
    """A row that is counted while anybody has it."""

    alive = 0

    def __init__(self) -> None:
        Row.alive += 1

    def __del__(self) -> None:
        Row.alive -= 1


def test_rows_give_way_one_by_one_and_never_more_are_there_than_allowed() -> None:
    caches = [RowCache(budget) for budget in [CacheBudget(300)] for _ in range(3)]
    before = Row.alive
    for number in range(2000):
        caches[number % 3].put(number, Row())
        assert Row.alive - before >= -1, "one comes in, one goes"
        assert Row.alive <= 301
        before = Row.alive


def test_a_cache_that_is_gone_is_not_kept_by_its_budget() -> None:
    budget = CacheBudget(300)
    cache = RowCache(budget)
    cache.put("a", Row())
    assert sys.getrefcount(cache) == 2
    del cache
    assert Row.alive == 0


KEYS = st.integers(0, 30)
WRITES = st.one_of(
    st.tuples(st.just("put"), KEYS), st.tuples(st.just("get"), KEYS), st.tuples(st.just("update"), st.sets(KEYS))
)


@given(st.integers(0, 12), st.lists(st.tuples(st.integers(0, 1), WRITES), max_size=80))
def test_they_stay_bounded_and_know_the_newest_row_or_none(
    rows_max: int, writes: list[tuple[int, tuple[str, object]]]
) -> None:
    budget = CacheBudget(rows_max)
    caches = RowCache(budget), RowCache(budget)
    newest: tuple[dict[object, int], dict[object, int]] = ({}, {})
    for number, (which, (kind, keys)) in enumerate(writes):
        cache, expected = caches[which], newest[which]
        if kind == "put":
            cache.put(keys, number)
            expected[keys] = number
        elif kind == "update":
            assert isinstance(keys, set)
            cache.update(dict.fromkeys(keys, number))
            expected |= dict.fromkeys(keys, number)
        else:
            assert cache.get(keys) in (ABSENT, expected.get(keys))
        assert sum(map(len, caches)) <= 4 * (rows_max // 3), "a generation may be as large as two, for a large commit"
    for cache, expected in zip(caches, newest, strict=True):
        for key, row in expected.items():
            assert cache.get(key) in (ABSENT, row)
