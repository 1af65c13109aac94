"""The requests of every commit and fetch on the wire: aiokafka's own format, encoded and decoded in fewer steps.

aiokafka encodes each field by itself, joins each level of a request anew (a megabyte of records is copied six times)
and walks over the answer for some 60 partitions field by field: a seventh of a busy worker's time. Here the same
schemas are compiled once into functions: fixed fields in one go, and one join for all of it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from functools import cache, lru_cache
from io import BytesIO
from typing import Any

from aiokafka.protocol import fetch, produce, transaction
from aiokafka.protocol.types import Array, Bytes, Int8, Int16, Int32, Int64, Schema, String

Write = Callable[[bytes], Any]
Encode = Callable[[Any, Write], None]
Decode = Callable[[bytes, int], tuple[Any, int]]  # from an offset on: the value, and the offset behind it

_FIXED = {Int8: "b", Int16: "h", Int32: "i", Int64: "q"}
_length = struct.Struct(">i")
_short_length = struct.Struct(">h")
_REQUESTS = (
    produce.ProduceRequest,
    fetch.FetchRequest,
    transaction.AddPartitionsToTxnRequest,
    transaction.TxnOffsetCommitRequest,
)


def install() -> None:
    """Let aiokafka use this for its hot requests and their answers; doing so again changes nothing."""
    for request in _REQUESTS:
        for version in request._CLASSES:
            version.encode = encode
            version.RESPONSE_TYPE.decode = classmethod(decode)


def encode(message: Any) -> bytes:
    """Bytes of a request, as `Struct.encode` makes them."""
    parts: list[bytes] = []
    _encoder(message.SCHEMA)([message.__dict__[name] for name in message.SCHEMA.names], parts.append)
    return b"".join(parts)


def decode(kind: Any, data: BytesIO | bytes) -> Any:
    """A response of a class from its bytes, as `Struct.decode` makes it."""
    raw, start = (data, 0) if isinstance(data, bytes) else (data.getvalue(), data.tell())
    try:
        values, _ = _decoder(kind.SCHEMA)(raw, start)
    except struct.error as error:
        raise ValueError(f"{kind.__name__} ends too early: {error}") from error
    return kind(*values)


# ---- compiled once per schema


def _groups(schema: Schema) -> Iterable[tuple[str, int, int]]:
    """Runs of fields of a fixed size as (struct codes, first, end); any other field alone, with no codes."""
    first, codes = 0, ""
    for index, field in enumerate(schema.fields):
        code = _FIXED.get(field) if isinstance(field, type) else None
        if code is not None:
            first, codes = (first, codes + code) if codes else (index, code)
            continue
        if codes:
            yield codes, first, index
            codes = ""
        yield "", index, index + 1
    if codes:
        yield codes, first, len(schema.fields)


@cache
def _encoder(kind: Any) -> Encode:
    if type(kind) is Schema:
        return _schema_encoder(kind)
    if type(kind) is Array:
        return _array_encoder(_encoder(kind.array_of))
    if kind is Bytes:
        return _encode_bytes
    encode_one = lru_cache(maxsize=4096)(kind.encode) if type(kind) is String else kind.encode

    def encode_field(value: Any, write: Write) -> None:
        write(encode_one(value))

    return encode_field


def _schema_encoder(schema: Schema) -> Encode:
    steps = [
        (
            struct.Struct(f">{codes}").pack if codes else None,
            None if codes else _encoder(schema.fields[first]),
            first,
            end,
        )
        for codes, first, end in _groups(schema)
    ]

    def encode_schema(item: Sequence[Any], write: Write) -> None:
        for pack, encode_field, first, end in steps:
            if pack is not None:
                write(pack(*item[first:end]))
            elif encode_field is not None:
                encode_field(item[first], write)

    return encode_schema


def _array_encoder(encode_item: Encode) -> Encode:
    def encode_array(items: Sequence[Any] | None, write: Write) -> None:
        write(_length.pack(-1 if items is None else len(items)))
        for item in items or ():
            encode_item(item, write)

    return encode_array


def _encode_bytes(value: bytes | None, write: Write) -> None:
    write(_length.pack(-1 if value is None else len(value)))
    if value is not None:
        write(value)


@cache
def _decoder(kind: Any) -> Decode:
    if type(kind) is Schema:
        return _schema_decoder(kind)
    if type(kind) is Array:
        return _array_decoder(_decoder(kind.array_of))
    if kind is Bytes:
        return _decode_bytes
    if type(kind) is String:
        return _decode_string
    if kind in _FIXED:
        return _schema_decoder_of_one(struct.Struct(f">{_FIXED[kind]}"))
    return _unknown_decoder(kind)


def _schema_decoder(schema: Schema) -> Decode:
    steps = [
        (struct.Struct(f">{codes}") if codes else None, None if codes else _decoder(schema.fields[first]))
        for codes, first, _ in _groups(schema)
    ]

    def decode_schema(raw: bytes, at: int) -> tuple[Any, int]:
        values: list[Any] = []
        for fixed, decode_field in steps:
            if fixed is not None:
                values += fixed.unpack_from(raw, at)
                at += fixed.size
            elif decode_field is not None:
                value, at = decode_field(raw, at)
                values.append(value)
        return tuple(values), at

    return decode_schema


def _schema_decoder_of_one(fixed: struct.Struct) -> Decode:
    def decode_fixed(raw: bytes, at: int) -> tuple[Any, int]:
        return fixed.unpack_from(raw, at)[0], at + fixed.size

    return decode_fixed


def _array_decoder(decode_item: Decode) -> Decode:
    def decode_array(raw: bytes, at: int) -> tuple[Any, int]:
        (count,) = _length.unpack_from(raw, at)
        at += _length.size
        if count == -1:
            return None, at
        items = []
        for _ in range(count):
            item, at = decode_item(raw, at)
            items.append(item)
        return items, at

    return decode_array


def _decode_bytes(raw: bytes, at: int) -> tuple[bytes | None, int]:
    (length,) = _length.unpack_from(raw, at)
    return _cut(raw, at + _length.size, length)


def _decode_string(raw: bytes, at: int) -> tuple[str | None, int]:
    (length,) = _short_length.unpack_from(raw, at)
    value, at = _cut(raw, at + _short_length.size, length)
    return None if value is None else value.decode(), at


def _cut(raw: bytes, at: int, length: int) -> tuple[bytes | None, int]:
    if length < 0:
        return None, at
    if at + length > len(raw):
        raise ValueError(f"the answer ends {at + length - len(raw)} bytes too early")
    return raw[at : at + length], at + length


def _unknown_decoder(kind: Any) -> Decode:
    """Fields that no hot answer has today: as aiokafka decodes them."""

    def decode_field(raw: bytes, at: int) -> tuple[Any, int]:
        data = BytesIO(raw)
        data.seek(at)
        return kind.decode(data), data.tell()

    return decode_field
