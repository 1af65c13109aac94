"""Damage to the files of a store, round after round: flipped bits, files cut off, deleted or emptied, at any time.

After each the verifier accepts two things only: what is read is right, or it is said that it cannot be read. And the
partition gets over it by itself, with every record counted once.

    python -m tests.chaos.disk [--broker memory://] [--rounds 500] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path

from engine.failures.classify import INFRASTRUCTURE_ERRORS
from engine.partition.engine import PartitionNotHere
from tests.apps import Seen, wait_until
from tests.damage import flip
from tests.feeding import HEALING_S, Fed, fed

KEYS = [f"key-{number:03}" for number in range(300)]
KEYS_PER_ROUND = 5


def cut(file: Path, source: random.Random) -> None:
    """Leave a random part of a file."""
    raw = file.read_bytes()
    file.write_bytes(raw[: source.randrange(len(raw))])


def empty(file: Path, _: random.Random) -> None:
    """Leave nothing of a file but its name."""
    file.write_bytes(b"")


def delete(file: Path, _: random.Random) -> None:
    """Remove a file."""
    file.unlink()


def flip_any(file: Path, source: random.Random) -> None:
    """Change one bit somewhere in a file."""
    flip(file, source.randrange(file.stat().st_size))


DAMAGES: Mapping[str, Callable[[Path, random.Random], None]] = {
    "flip": flip_any,
    "cut": cut,
    "empty": empty,
    "delete": delete,
}


class Rounds:
    """Rounds of damage to one store; `values` is what has been written under each key."""

    def __init__(self, engine: Fed, source: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._fed = engine
        self._source = source
        self._values: dict[str, list[str]] = {}
        self._generation = 0

    async def begin(self) -> None:
        """Fill the store."""
        await self._assign([0])
        await self._write(KEYS, "begin")

    async def play(self, number: int) -> None:
        """Damage a file while the partition runs or is away, write on, and check that all of it is right in the end."""
        source = self._source
        stopped = source.random() < 0.6
        if stopped or source.random() < 0.5:
            await self._assign([])  # what was in memory is in files then
        if not stopped:
            await self._assign([0])
        what = self._damage()
        if stopped:
            await self._assign([0])
        for _ in range(3):
            self._check_what_is_read(what)
            await asyncio.sleep(0.001)
        await self._write(source.sample(KEYS, KEYS_PER_ROUND), f"{number}")
        await self._assign([])
        await self._assign([0])
        await self._until_whole(what)
        assert self._fed.engine.fatal is None

    def _damage(self) -> str:
        store, source = self._fed.engine.store_path(0), self._source
        files = sorted(file for file in store.iterdir() if file.stat().st_size)
        if source.random() < 0.5:
            files = [file for file in files if file.suffix == ".sst"] or files
        file, name = source.choice(files), source.choice(list(DAMAGES))
        DAMAGES[name](file, source)
        self.done[name] += 1
        return f"{name} {file.name}"

    def _check_what_is_read(self, what: str) -> None:
        try:
            self._compare(what)
        except (PartitionNotHere, *INFRASTRUCTURE_ERRORS):
            return  # it is said

    def _compare(self, what: str) -> None:
        found = dict(self._fed.engine.task(0).scan(self._fed.tally.table))
        expected = {key: Seen(tuple(values)) for key, values in self._values.items()}
        assert found == expected, f"wrong rows after: {what}"

    async def _until_whole(self, what: str) -> None:
        """Wait until all rows can be read, and are right."""
        deadline = time.monotonic() + HEALING_S
        while True:
            await wait_until(self._fed.engine.is_ready, f"the partition has got over: {what}", HEALING_S)
            try:
                self._compare(what)
                return
            except (PartitionNotHere, *INFRASTRUCTURE_ERRORS) as error:
                if time.monotonic() > deadline:
                    raise AssertionError(f"{what}: {error}") from error
                await asyncio.sleep(0.005)

    async def _write(self, keys: list[str], value: str) -> None:
        await self._fed.write_all(keys, value)
        for key in keys:
            self._values.setdefault(key, []).append(value)

    async def _assign(self, numbers: list[int]) -> None:
        self._generation += 1
        await self._fed.engine.revoked()
        await self._fed.engine.assigned(numbers, self._generation)


async def run(broker: str, rounds: int, seed: int, folder: Path) -> Mapping[str, int]:
    """Play some rounds; how often each damage was done, and how many stores were built anew. Raises AssertionError."""
    async with fed(folder, broker) as engine:
        playing = Rounds(engine, random.Random(seed))
        await playing.begin()
        for number in range(rounds):
            await playing.play(number)
        playing._compare("the end")
        return {**playing.done, "rebuilt": engine.engine.metrics.stores_rebuilt}


def main() -> None:
    """Run, and print one line of JSON."""
    parser = argparse.ArgumentParser(description="damage the files of a store, round after round")
    parser.add_argument("--broker", default="memory://")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        done = asyncio.run(run(options.broker, options.rounds, options.seed, Path(folder)))
    print(json.dumps({"benchmark": "damaged stores", **vars(options), **done, "seconds": time.monotonic() - began}))


if __name__ == "__main__":
    main()
