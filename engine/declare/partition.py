"""A partition as its readers see it: committed rows, and how far agents have got."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterator
from functools import cached_property
from typing import Any, Generic, Protocol, TypeVar, get_type_hints

import msgspec

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


A = TypeVar("A")
T = TypeVar("T")

QueryFunction = Callable[[Any, Any, A], Awaitable[T]]
"""An async function of the engine, an own partition (a Partition, or the whole task) and what is asked."""


class Query(Generic[A, T]):
    """A named question to one partition; `Service.query` declares it, `engine.web.routes.queries` asks it.

    What is asked and the answer go between workers as JSON: both types are read from the function's annotations. One
    that `changes` something needs the token that changes need, and goes on when the client goes away.
    """

    def __init__(self, name: str, function: QueryFunction[A, T], changes: bool = False) -> None:
        self.name = name
        self.function = function
        self.changes = changes

    def __call__(self, engine: Any, partition: Any, asked: A) -> Awaitable[T]:
        """The answer of a partition that is at this worker."""
        return self.function(engine, partition, asked)

    @cached_property
    def decode_asked(self) -> Callable[[str | bytes], A]:
        """Decode what is asked; raises msgspec.DecodeError."""
        *_, asked = inspect.signature(self.function).parameters
        return msgspec.json.Decoder(self._hints[asked]).decode

    @cached_property
    def decode_answer(self) -> Callable[[bytes], T]:
        """Decode an answer; raises msgspec.DecodeError."""
        return msgspec.json.Decoder(self._hints["return"]).decode

    @cached_property
    def _hints(self) -> dict[str, Any]:
        return get_type_hints(self.function, include_extras=True)
