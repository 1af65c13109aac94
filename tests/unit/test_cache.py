"""The cache of decoded rows is bounded and never answers with an older row."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from streams.engine.cache import ABSENT, RowCache


def test_a_row_that_is_known_not_to_exist_differs_from_one_that_is_not_cached() -> None:
    cache = RowCache(10)
    assert cache.get("a") is ABSENT
    cache.put("a", None)
    assert cache.get("a") is None


def test_what_is_used_stays_and_what_is_not_goes() -> None:
    cache = RowCache(100)
    cache.put("hot", "row")
    for number in range(1000):
        cache.put(number, number)
        assert cache.get("hot") == "row"
    assert cache.get(0) is ABSENT


def test_a_cache_of_nothing_keeps_nothing() -> None:
    cache = RowCache(0)
    cache.put("a", 1)
    cache.update({"b": 2, "c": 3})
    assert [cache.get(key) for key in "abc"] == [ABSENT] * 3
    assert len(cache) == 0


KEYS = st.integers(0, 30)
WRITES = st.one_of(
    st.tuples(st.just("put"), KEYS), st.tuples(st.just("get"), KEYS), st.tuples(st.just("update"), st.sets(KEYS))
)


@given(st.integers(0, 12), st.lists(WRITES, max_size=80))
def test_it_stays_bounded_and_knows_the_newest_row_or_none(rows_max: int, writes: list[tuple[str, object]]) -> None:
    cache, newest = RowCache(rows_max), dict[object, int]()
    for number, (kind, keys) in enumerate(writes):
        if kind == "put":
            cache.put(keys, number)
            newest[keys] = number
        elif kind == "update":
            assert isinstance(keys, set)
            cache.update(dict.fromkeys(keys, number))
            newest |= dict.fromkeys(keys, number)
        else:
            assert cache.get(keys) in (ABSENT, newest.get(keys))
        assert len(cache) <= 1.5 * rows_max
    for key, row in newest.items():
        assert cache.get(key) in (ABSENT, row)
