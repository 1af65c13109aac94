"""Tokens bring positions back as they were, and nothing else passes for a token."""

import base64
import string

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.log.ports import Position
from engine.positions.tokens import InvalidToken, decode_token, encode_token, topic_mark

positions = st.builds(
    Position,
    st.sampled_from(["order-commands", "inventory-commands"]),
    st.integers(0, 1023),
    st.integers(0, 2**62),
)


@given(st.lists(positions, min_size=1, unique_by=lambda position: position[:2]))
def test_a_token_brings_its_positions_back(given_positions: list[Position]) -> None:
    assert sorted(decode_token(encode_token(given_positions)).positions) == sorted(given_positions)


@given(
    st.lists(positions, min_size=1, unique_by=lambda position: position[:2]),
    st.dictionaries(st.sampled_from(["order-commands", "inventory-commands", "elsewhere"]), st.text()),
)
def test_a_token_marks_the_topics_whose_ids_are_known(
    given_positions: list[Position], topic_ids: dict[str, str]
) -> None:
    token = decode_token(encode_token(given_positions, topic_ids))
    assert sorted(token.positions) == sorted(given_positions)
    topics = {position.topic for position in given_positions}
    assert token.marks == {topic: topic_mark(id) for topic, id in topic_ids.items() if id and topic in topics}


@given(st.lists(positions, min_size=1, unique_by=lambda position: position[:2]))
def test_releases_that_know_no_marks_read_tokens_that_have_some(given_positions: list[Position]) -> None:
    topic_ids = {position.topic: "id" for position in given_positions}
    text = encode_token(given_positions, topic_ids)
    raw = base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
    newest = msgspec.msgpack.decode(raw[1:], type=dict[str, dict[int, int]])  # as they do
    assert raw[:1] == b"\x01"
    assert sorted(
        Position(topic, partition, offset) for topic, offsets in newest.items() for partition, offset in offsets.items()
    ) == sorted(given_positions)


def test_a_token_of_a_release_that_knew_no_marks_has_none() -> None:
    assert decode_token(_token_of({"order-commands": {3: 7}})) == ((Position("order-commands", 3, 7),), {})


def test_a_token_of_very_many_topics_has_no_marks() -> None:
    given_positions = [Position(f"t-{number}", 0, number) for number in range(8)]
    token = decode_token(encode_token(given_positions, {position.topic: "id" for position in given_positions}))
    assert sorted(token.positions) == given_positions
    assert token.marks == {}


@given(st.lists(positions, min_size=1))
def test_a_token_needs_no_escaping_in_urls(given_positions: list[Position]) -> None:
    assert set(encode_token(given_positions)) <= set(string.ascii_letters + string.digits + "-_")


def test_the_last_position_of_a_partition_stands_for_all() -> None:
    token = encode_token([Position("t", 1, 5), Position("t", 1, 9), Position("t", 1, 7), Position("t", 2, 0)])
    assert set(decode_token(token).positions) == {Position("t", 1, 9), Position("t", 2, 0)}


def _token_of(value: object, version: bytes = b"\x01") -> str:
    return base64.urlsafe_b64encode(version + msgspec.msgpack.encode(value)).rstrip(b"=").decode()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        "not a token",
        "====",
        "ü",
        _token_of({}),
        _token_of({"t": {}}),
        _token_of({"t": {0: -1}}),
        _token_of({"t": {-1: 0}}),
        _token_of([1, 2, 3]),
        _token_of({"t": {0: "1"}}),
        _token_of({"t": {0: 1}}, version=b"\x02"),
        encode_token([Position("t", 0, 1)])[:-2],
    ],
)
def test_other_texts_are_refused(text: str) -> None:
    with pytest.raises(InvalidToken):
        decode_token(text)


@given(st.text())
def test_no_text_breaks_the_decoder(text: str) -> None:
    try:
        decode_token(text)
    except InvalidToken:
        return
