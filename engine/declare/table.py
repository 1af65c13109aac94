"""Declarations of tables: name, key and row type. State itself lives in the partition's store."""

import struct
from collections.abc import Callable
from typing import Any, Generic, TypeVar

import msgspec

K = TypeVar("K")
V = TypeVar("V")


class KeyCodec(msgspec.Struct, Generic[K], frozen=True):
    """How keys become bytes whose order is the order of listing, and back."""

    encode: Callable[[K], bytes]
    decode: Callable[[bytes], K]


TEXT_KEY: KeyCodec[str] = KeyCodec(str.encode, bytes.decode)


def encode_prefix(owner: str) -> bytes:
    """The common start of all keys that belong to `owner`: its length first, so that no id is a prefix of another."""
    raw = owner.encode()
    return struct.pack(">H", len(raw)) + raw


def _encode_numbered(key: tuple[str, int]) -> bytes:
    return encode_prefix(key[0]) + struct.pack(">Q", key[1])


def _decode_numbered(raw: bytes) -> tuple[str, int]:
    return raw[2:-8].decode(), struct.unpack(">Q", raw[-8:])[0]


# (owner, number): one owner's rows in the order of their number
NUMBERED_KEY: KeyCodec[tuple[str, int]] = KeyCodec(_encode_numbered, _decode_numbered)


class Table(Generic[K, V]):
    """A table, partitioned by aggregate, each row with a changelog record.

    `row` is a frozen msgspec struct (rows are replaced, never changed) stored as JSON; `key` says how keys are stored.
    Handlers use a table through their unit of work, the web view through queries of committed rows. With
    `marked_at_ms` (production time, epoch) rows expire: they are removed once they are older than `kept_s` seconds, by
    default the setting `dedupe_window`, the time for which a deduplication mark is kept. Rows that are seldom read
    again, as marks and what is only listed, are not `cached`.
    """

    def __init__(
        self,
        name: str,
        row: type[V],
        key: KeyCodec[K] = TEXT_KEY,  # type: ignore[assignment]
        help: str = "",
        marked_at_ms: Callable[[V], int] | None = None,
        kept_s: float | None = None,
        cached: bool = True,
    ) -> None:
        self.name = name
        self.row = row
        self.key = key
        self.help = help
        self.marked_at_ms = marked_at_ms
        self.kept_s = kept_s
        self.cached = cached
        self.prefix = name.encode() + b"\0"
        self.encode_row: Callable[[V], bytes] = msgspec.json.Encoder().encode
        self.decode_row: Callable[[bytes], V] = msgspec.json.Decoder(row).decode

    def storage_key(self, key: K) -> bytes:
        """Where the row of `key` is in the partition's store."""
        return self.prefix + self.key.encode(key)

    def changelog_topic(self, app_id: str) -> str:
        """The compacted topic of this table's rows, named as Faust names changelogs."""
        return f"{app_id}-{self.name}-changelog"

    def __repr__(self) -> str:
        return f"<Table {self.name}>"


AnyTable = Table[Any, Any]
