"""Timers lie in the store in the order they fall due."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from engine.declare.timers import TIMERS, Timer, TimerKey, encode_due

KEYS = st.builds(
    TimerKey, st.integers(0, 2**63), st.text(max_size=20), st.text(max_size=20).filter(lambda text: text.isprintable())
)


@given(KEYS, KEYS)
def test_byte_order_is_due_order(one: TimerKey, other: TimerKey) -> None:
    if one.due_ms < other.due_ms:
        assert TIMERS.key.encode(one) < TIMERS.key.encode(other)
    assert (TIMERS.key.encode(one) == TIMERS.key.encode(other)) == (one == other)


@given(KEYS)
def test_a_key_comes_back_from_its_bytes_and_begins_with_its_due_time(key: TimerKey) -> None:
    raw = TIMERS.key.encode(key)
    assert TIMERS.key.decode(raw) == key
    assert raw.startswith(encode_due(key.due_ms))


def test_a_timer_comes_back_from_its_row() -> None:
    timer = Timer("retry", "order-1", 17, b"\x00\xff payload")
    assert TIMERS.decode_row(TIMERS.encode_row(timer)) == timer
