"""Consistency tokens: where the commands of a request are in the log, as an opaque text for URLs."""

import base64
import binascii
from collections.abc import Iterable

import msgspec

from streams.transport.base import Position

_VERSION = b"\x01"
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(dict[str, dict[int, int]]).decode


class InvalidToken(ValueError):
    """The text is not a token that this application made."""


def encode_token(positions: Iterable[Position]) -> str:
    """One token for all `positions`; of several in one partition the last one stands for all."""
    newest: dict[str, dict[int, int]] = {}
    for topic, partition, offset in positions:
        offsets = newest.setdefault(topic, {})
        offsets[partition] = max(offset, offsets.get(partition, 0))
    return base64.urlsafe_b64encode(_VERSION + _encode(newest)).rstrip(b"=").decode()


def decode_token(text: str) -> tuple[Position, ...]:
    """The positions in a token; raises InvalidToken when there are none."""
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
    return positions
