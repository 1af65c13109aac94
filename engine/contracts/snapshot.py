"""The snapshot of the event contracts in the repository: what others rely on until somebody decides otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec

from engine.contracts.compatibility import IsRead, breaks
from engine.contracts.events import Contract

_decode = msgspec.json.Decoder(dict[str, Contract]).decode


class Difference(NamedTuple):
    """How the code differs from the snapshot: what breaks others, and whether anything is different at all."""

    breaks: list[str]
    differs: bool


def read(file: Path) -> dict[str, Contract]:
    """The contracts of a snapshot, none where there is none."""
    return _decode(file.read_bytes()) if file.exists() else {}


def write(file: Path, contracts: Mapping[str, Contract]) -> None:
    """Write a snapshot that differs by lines."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(contracts, order="deterministic"), indent=2) + b"\n")


def compare(before: Mapping[str, Contract], now: Mapping[str, Contract], is_read: IsRead) -> Difference:
    """Hold the code against a snapshot."""
    renewed = renew(before, now, is_read)
    same = msgspec.json.encode(renewed, order="sorted") == msgspec.json.encode(before, order="sorted")
    return Difference(breaks(before, now, is_read), not same)


def renew(before: Mapping[str, Contract], now: Mapping[str, Contract], is_read: IsRead) -> dict[str, Contract]:
    """The next snapshot: what there is now, and older versions as long as they are still read."""
    kept = {
        name: contract
        for name, contract in before.items()
        if contract.version is not None and is_read(name.rpartition("/")[0], contract.version)
    }
    return dict(sorted({**kept, **now}.items()))
