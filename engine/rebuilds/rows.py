"""Rebuilds as rows: how far one has got, what it found, and the rows it has made so far, beside the running ones.

All of it is changed in the partition's unit of work, so a rebuild goes on where its last commit was, on whichever
worker.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any, Final, Literal, NamedTuple

import msgspec
from msgspec.structs import replace

from engine.declare.table import AnyTable, KeyCodec, Table, encode_prefix

RUNNING: Final = "running"
CLEARING: Final = "clearing"
"""The rows beside the running ones are being removed; `then` is what comes after it."""
DONE: Final = "done"
FAILED: Final = "failed"
CANCELLED: Final = "cancelled"

RebuildState = Literal["running", "clearing", "done", "failed", "cancelled"]

SAMPLES_MAX: Final = 5
_DIGEST_MASK: Final = (1 << 63) - 1


class Difference(msgspec.Struct, frozen=True):
    """A row that is not as its events say; null where there is none, or one that cannot be read."""

    table: str
    key: msgspec.Raw
    before: msgspec.Raw
    after: msgspec.Raw


class Rebuild(msgspec.Struct, frozen=True):
    """One partition's part of a rebuild, the same `id` in all partitions. With `check` nothing is switched.

    `next` is the offset of the source to go on at. `applied` records were handled; `waiting` ones were not, as the
    running projection has not got them either (they wait behind a failed one, or are dead letters), and `waiting_sum`
    tells which those were. `discarded` dead letters and `unreadable` records are left out, `suppressed` is what
    handlers wanted to send or schedule. `added`, `changed` and `removed` are rows that differ, `rows` all that were
    compared; `are_more` says that counting was given up. `restarts` is how often it had to begin anew.
    """

    id: str
    started_ms: int
    check: bool = False
    state: RebuildState = CLEARING
    then: RebuildState = RUNNING
    next: int = 0
    applied: int = 0
    waiting: int = 0
    waiting_sum: int = 0
    discarded: int = 0
    unreadable: int = 0
    suppressed: int = 0
    rows: int = 0
    added: int = 0
    changed: int = 0
    removed: int = 0
    are_more: bool = False
    samples: tuple[Difference, ...] = ()
    restarts: int = 0
    ended_ms: int | None = None
    error: str | None = None

    @property
    def is_active(self) -> bool:
        """Whether there is still something to do."""
        return self.state in (RUNNING, CLEARING)

    @property
    def outcome(self) -> RebuildState:
        """The state as people see it: what is decided counts, also while rows are still being removed."""
        return self.then if self.state == CLEARING else self.state


class RebuiltKey(NamedTuple):
    """A row's table, and its key as it is stored there."""

    table: str
    key: bytes


def _encode(key: RebuiltKey) -> bytes:
    return encode_prefix(key.table) + key.key


def _decode(raw: bytes) -> RebuiltKey:
    end = 2 + struct.unpack(">H", raw[:2])[0]
    return RebuiltKey(raw[2:end].decode(), raw[end:])


REBUILDS: Table[str, Rebuild] = Table("rebuilds", Rebuild, help="the last rebuild of each projection, by its agent")
REBUILT_ROWS: Table[RebuiltKey, msgspec.Raw] = Table(
    "rebuilt-rows", msgspec.Raw, KeyCodec(_encode, _decode), help="rows of a rebuild that is under way, by table"
)


def ended(rebuild: Rebuild, outcome: RebuildState, now_ms: int, error: str | None = None) -> Rebuild:
    """The rebuild with its outcome; its rows are still to be removed."""
    return replace(rebuild, state=CLEARING, then=outcome, ended_ms=now_ms, error=error)


def begun_anew(rebuild: Rebuild) -> Rebuild:
    """The rebuild from the beginning of its topic, once the rows it has made are removed."""
    fresh = Rebuild(rebuild.id, rebuild.started_ms, rebuild.check)
    return replace(fresh, restarts=rebuild.restarts + 1)


def sum_of(offset: int) -> int:
    """What an offset adds to a sum that tells which offsets are in a set; see `plus`."""
    return int.from_bytes(hashlib.blake2b(struct.pack(">q", offset), digest_size=8).digest()) & _DIGEST_MASK


def plus(total: int, more: int) -> int:
    """The sum of two such sums."""
    return (total + more) & _DIGEST_MASK


def difference(table: AnyTable, key: Any, before: Any, after: Any) -> Difference:
    """A differing row as people see it."""
    return Difference(table.name, msgspec.Raw(msgspec.json.encode(key)), _shown(table, before), _shown(table, after))


def _shown(table: AnyTable, row: Any) -> msgspec.Raw:
    return msgspec.Raw(b"null" if row is None else table.encode_row(row))
