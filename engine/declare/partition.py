"""A partition as its readers see it: committed rows, and how far agents have got."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Generic, Protocol, TypeVar

from engine.declare.table import AnyTable, Table

K = TypeVar("K")
V = TypeVar("V")


class Rendering(Generic[K, V]):
    """Rows of a table as bytes for readers, such as an answer's body; `render` may say that there is nothing to show.

    What was rendered is kept: it takes less room than the row, and less time than to make it again.
    """

    def __init__(self, table: Table[K, V], render: Callable[[V], bytes | None]) -> None:
        self.table = table
        self.render = render


class Partition(Protocol):
    """One partition of the application, to read from; views, gauges and whatever only looks take this.

    All methods raise InfrastructureError while the partition is not open here.
    """

    @property
    def number(self) -> int:
        """The partition's number."""

    def read(self, table: Table[K, V], key: K, *, keep: bool = True) -> V | None:
        """The committed row of `key`, None where there is none; not kept in the cache without `keep`."""

    def rendered(self, rendering: Rendering[K, V], key: K) -> bytes | None:
        """The committed row of `key` as it is rendered, None where there is none."""

    def scan(
        self, table: Table[K, V], prefix: bytes = b"", start: bytes = b"", reverse: bool = False
    ) -> Iterator[tuple[K, V]]:
        """Committed rows whose key bytes begin with `prefix`, from the key bytes `start` on, in key order."""

    def read_raw(self, table: Table[K, V], key: K) -> bytes | None:
        """The committed row of `key` as it is stored: a row in memory may hide that it is damaged there."""

    def scan_raw(self, table: AnyTable, prefix: bytes = b"", start: bytes = b"") -> Iterator[tuple[bytes, bytes]]:
        """Committed rows as they are stored, with the bytes of their keys; otherwise as `scan`."""

    def reached(self, agent: str, topic: str) -> int:
        """The offset before which everything of `topic` is handled by `agent` and committed."""

    def store_size_bytes(self) -> int:
        """Bytes of the partition's store on disk, 0 while it is not open."""
