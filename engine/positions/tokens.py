"""Consistency tokens: where the commands of a request are in the log, as an opaque text for URLs.

A token also marks which topics it counts: one that was deleted and made anew under the same name begins at 0 again, and
would reach any offset some day. In the token's map an entry of marks comes before the positions of each topic, under
the same name: releases that know no marks keep the last entry of a name, and tokens of theirs have no marks.
"""

import base64
import binascii
import zlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any, Final, NamedTuple

import msgspec

from engine.log.ports import Position

_VERSION = b"\x01"
_MAP: Final = 0x80  # msgpack's header of a map with at most _ENTRIES_MAX entries, whose number is added to it
_ENTRIES_MAX: Final = 15
_ARRAY16: Final = b"\xdc"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, dict[int, int]]).decode
_decode_list = msgspec.msgpack.Decoder(list[Any]).decode


class InvalidToken(ValueError):
    """The text is not a token that this application made."""


class Token(NamedTuple):
    """What a token stands for; `marks` are those of its topics, as far as they were known (see `topic_mark`)."""

    positions: tuple[Position, ...]
    marks: Mapping[str, int]


def topic_mark(topic_id: str) -> int:
    """A short mark of a topic's id: ids that differ have different ones but for one in four billion."""
    return zlib.crc32(topic_id.encode())


def encode_token(positions: Iterable[Position], topic_ids: Mapping[str, str] | None = None) -> str:
    """One token for all `positions`; of several in one partition the last one stands for all.

    `topic_ids` are the ids of their topics, as far as they are known.
    """
    newest: dict[str, dict[int, int]] = {}
    for topic, partition, offset in positions:
        offsets = newest.setdefault(topic, {})
        offsets[partition] = max(offset, offsets.get(partition, 0))
    marks = {topic: topic_mark(id) for topic in newest if (id := (topic_ids or {}).get(topic))}
    return base64.urlsafe_b64encode(_VERSION + _with_marks(newest, marks)).rstrip(b"=").decode()


def decode_token(text: str) -> Token:
    """What a token stands for; raises InvalidToken when it is none."""
    try:
        raw = base64.b64decode(text + "=" * (-len(text) % 4), altchars=b"-_", validate=True)
        newest = _decode(raw[1:])
    except (binascii.Error, ValueError, msgspec.DecodeError) as error:
        raise InvalidToken("not a token of this application") from error
    positions = tuple(
        Position(topic, partition, offset) for topic, offsets in newest.items() for partition, offset in offsets.items()
    )
    if raw[:1] != _VERSION or not positions or any(min(partition, offset) < 0 for _, partition, offset in positions):
        raise InvalidToken("not a token of this application")
    return Token(positions, _marks_in(raw[1:]))


def _with_marks(newest: Mapping[str, Mapping[int, int]], marks: Mapping[str, int]) -> bytes:
    """The token's map: of each topic an entry `{0: mark}`, where it has a mark, and one with its offsets."""
    entries: list[tuple[str, Mapping[int, int]]] = []
    for topic, offsets in newest.items():
        if topic in marks:
            entries.append((topic, {0: marks[topic]}))
        entries.append((topic, offsets))
    if len(entries) > _ENTRIES_MAX:  # of very many topics: without marks, then
        return _encode(newest)
    return bytes([_MAP | len(entries)]) + b"".join(_encode(part) for entry in entries for part in entry)


def _marks_in(raw: bytes) -> Mapping[str, int]:
    """The marks in a token's map, read as a list: as a dictionary it has the last entry of each topic only."""
    count = raw[0] & _ENTRIES_MAX
    if raw[0] != _MAP | count:
        return {}
    parts = _decode_list(_ARRAY16 + (2 * count).to_bytes(2) + raw[1:])
    entries = list(zip(parts[::2], parts[1::2], strict=True))
    return {
        topic: entry[0] for (topic, entry), (following, _) in pairwise(entries) if topic == following and 0 in entry
    }
