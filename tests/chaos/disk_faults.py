"""Calls to the operating system that fail under the real RocksDB, round after round, at any step of a partition's life.

Each round arms a fault (the n-th open, write, sync, rename or read of certain files: with EIO or ENOSPC, cut short, or
with another bit), does one of the steps, and lifts the fault. What is read meanwhile is right, or it is said that it
cannot be read. When the fault is over, all goes on: by itself, or, where the worker had said why it ends, when it is
started again. The rounds are played in a process of their own, under the library of tests/faulty_disk.

    python -m tests.chaos.disk_faults [--broker embedded://] [--rounds 500] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import logging
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Final

from engine.log.embedded.broker import EmbeddedBroker
from tests import faulty_disk
from tests.apps import wait_until
from tests.chaos.disk_values import SAID
from tests.chaos.disk_worker import HEALING_S, DiskWorker, use_small_buffers
from tests.faulty_disk import FAIL, FLIP, OPEN, READ, RENAME, SHORT, SYNC, WRITE, Fault, FaultyDisk

PARTS: Final = ("", "", "", ".sst", ".log", "MANIFEST", "/log/", "/stores/", ".mark", ".note")
FOR_EVER: Final = 1 << 20


def random_fault(source: random.Random) -> Fault:
    """What fails, how, and how often."""
    operations = source.choice((OPEN, WRITE, WRITE, SYNC, RENAME, READ, READ, WRITE | SYNC | RENAME | OPEN))
    is_read = operations == READ
    mode = source.choice((FAIL, SHORT, FLIP) if is_read else (FAIL, SHORT))
    error = errno.EIO if is_read else source.choice((errno.EIO, errno.ENOSPC))
    skip, times = source.choice((0, 0, 0, 1, 2, 5)), source.choice((1, 2, FOR_EVER))
    return Fault(operations, mode, error, skip, times, source.choice(PARTS))


class Rounds:
    """Rounds of faults on the disk of one worker."""

    def __init__(self, worker: DiskWorker, disk: FaultyDisk, source: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self.slowest_s = 0.0
        self._worker = worker
        self._disk = disk
        self._source = source

    async def play(self, number: int) -> None:
        """Let something fail at a step, and check that all is right while it does and afterwards."""
        steps = self._steps()
        step, fault = self._source.choice(list(steps)), random_fault(self._source)
        what = f"round {number}, {step} under {fault}"
        logging.info("---- %s", what)
        self._disk.arm(fault)
        try:
            with contextlib.suppress(*SAID):
                await asyncio.wait_for(steps[step](), HEALING_S)
            await self._worker.use(str(number), what)
        finally:
            failed = self._disk.lift()
        self.done[step] += 1
        self.done["rounds in which calls failed"] += failed > 0
        began = time.monotonic()
        await self._worker.until_right(what)
        seconds = time.monotonic() - began
        logging.info("---- round %d: %d calls failed, all right after %.1f s", number, failed, seconds)
        self.slowest_s = max(self.slowest_s, seconds)

    async def end(self) -> None:
        """Check that a sweep leaves no mark, and stop."""
        await self._sweep()
        worker = self._worker
        await wait_until(lambda: not list(worker.engine.task(0).scan(worker.tally.marks)), "all marks are gone")
        await worker.stop()

    # ---- steps

    def _steps(self) -> Mapping[str, Callable[[], Awaitable[None]]]:
        steps: dict[str, Callable[[], Awaitable[None]]] = {
            "commit": self._commit,
            "flush": self._flush,
            "reopen": self._reopen,
            "restore": self._restore,
            "sweep": self._sweep,
            "rebuild": self._worker.rebuild,
            "scrub": self._scrub,
            "stop": self._worker.stop,
            "start": self._start_again,
        }
        if self._worker.settings.transport == "embedded":
            steps["maintain"] = self._maintain
        return steps

    async def _commit(self) -> None:
        """Nothing but what every round does: records are written and handled."""

    async def _flush(self) -> None:
        with contextlib.suppress(Exception):  # rocksdict raises plain Exceptions
            self._worker.engine.task(0).store._db.flush()

    async def _reopen(self) -> None:
        await self._worker.assign([])
        await self._worker.assign([0])

    async def _restore(self) -> None:
        await self._worker.assign([])
        shutil.rmtree(self._worker.engine.store_path(0), ignore_errors=True)
        await self._worker.assign([0])

    async def _sweep(self) -> None:
        self._worker.engine.task(0)._expiry._begin()

    async def _scrub(self) -> None:
        self._worker.engine.task(0).scrub(b"", float("inf"))

    async def _maintain(self) -> None:
        broker = self._worker.engine.broker
        assert isinstance(broker, EmbeddedBroker)
        for _ in broker.log.maintain(min_dirty_ratio=0.0):
            await asyncio.sleep(0)

    async def _start_again(self) -> None:
        await self._worker.stop()
        await self._worker.start()


async def play(broker: str, rounds: int, seed: int, folder: Path) -> Mapping[str, float]:
    """Play rounds in this process, whose disk may fail; how often each step was done, and the slowest recovery."""
    use_small_buffers()
    disk = FaultyDisk(Path(os.environ[faulty_disk.CONTROL]), folder / "data")
    source = random.Random(seed)
    worker = DiskWorker(broker, folder / "data", source)
    playing = Rounds(worker, disk, source)
    await worker.begin()
    for number in range(rounds):
        await playing.play(number)
    await playing.end()
    return {**playing.done, "starts": worker.starts, "slowest_recovery_s": round(playing.slowest_s, 2)}


def run(broker: str, rounds: int, seed: int, folder: Path, library: Path) -> dict[str, float]:
    """Play rounds in a process of their own, under `library`; raises RoundsFailed."""
    environment = faulty_disk.environment(library, folder / "control")
    options = ["--broker", broker, "--rounds", str(rounds), "--seed", str(seed), "--folder", str(folder)]
    command = [sys.executable, "-m", "tests.chaos.disk_faults", "--here", *options]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RoundsFailed(f"seed {seed} on {broker}:\n{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout)
    return found


class RoundsFailed(AssertionError):
    """Something was not right; the message says in which round, and what."""


def main() -> None:
    """Run, and print one line of JSON."""
    parser = argparse.ArgumentParser(description="let calls to the operating system fail, round after round")
    parser.add_argument("--broker", default="embedded://")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where data and log are kept (default: a temporary folder)")
    parser.add_argument("--here", action="store_true", help="in this process, under the library that lets calls fail")
    options = parser.parse_args()
    if options.here:
        logging.basicConfig(level=logging.INFO, filename=options.folder / "rounds.log")
        print(json.dumps(asyncio.run(play(options.broker, options.rounds, options.seed, options.folder))))
        return
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        done = run(options.broker, options.rounds, options.seed, folder, faulty_disk.build(folder))
    figures = {"benchmark": "failing calls", "broker": options.broker, "rounds": options.rounds, "seed": options.seed}
    print(json.dumps({**figures, **done, "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
