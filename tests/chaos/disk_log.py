"""Damage to the files of an embedded log, round after round: flipped, cut off, emptied, deleted; and a full disk.

A round leaves a log that was closed in order or killed, damages it, and starts a worker on it. What is read then is
right, or it is said what is missing: the worker refuses to start, or a fault is open. A repair says what is lost, or
all is there. In the end a person restores the backup, and all is right. In some rounds the damage comes
while the worker runs and goes again, and in some the disk becomes full and has room again: all goes on by itself then.

    python -m tests.chaos.disk_log [--rounds 500] [--seed 1]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import random
import shutil
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from engine.log.embedded.check import repair_log
from engine.log.embedded.errors import LogError
from engine.log.embedded.mark import mark_path, read_mark
from engine.log.ports import TransportError
from tests.chaos.disk import DAMAGES
from tests.chaos.disk_values import SAID
from tests.chaos.disk_worker import DiskWorker, StillDown, use_small_buffers

SMALL_DISK_BYTES: Final = 64 << 20
PATIENCE_S: Final = 1.0  # with what is reported as a fault
ROOM_LEFT_BYTES: Final = 48 << 10


class Rounds:
    """Rounds of damage to the log of one worker, whose data folder is on a disk of its own where there can be one."""

    def __init__(self, worker: DiskWorker, folder: Path, has_own_disk: bool, source: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self._worker = worker
        self._folder = folder
        self._has_own_disk = has_own_disk
        self._source = source
        self._backup = folder.with_name("backup")

    @property
    def _log(self) -> Path:
        return self._folder / "log"

    async def play(self, number: int) -> None:
        """Damage the log in one of the ways, and check what is said and what is read."""
        rounds = [self._damaged_while_away] * 5 + [self._damaged_while_running] * 2 + [self._full] * self._has_own_disk
        played = self._source.choice(rounds)
        await self._worker.use(f"{number}-before", f"round {number}")
        await self._worker.until_right(f"round {number}, before the damage")
        await played(f"round {number}")

    # ---- while no worker runs

    async def _damaged_while_away(self, what: str) -> None:
        await self._leave()
        what = f"{what}, {self._damage()}"
        logging.info("---- %s", what)
        settled = self._worker.values.settled
        is_repaired = self._source.random() < 0.4 and self._repair(what)
        if not is_repaired:
            await self._check_it_is_right_or_said(what)
        await self._restore_backup(what, settled)  # also where all is right: what nobody has read may be damaged

    async def _check_it_is_right_or_said(self, what: str) -> None:
        """Start, and see whether all is right; where it is not, that has to be said."""
        try:
            await self._worker.start()
        except TransportError as error:
            logging.info("refused: %s", error)
            self.done["refused to start"] += 1
            return
        await self._worker.use("damaged", what)
        with contextlib.suppress(StillDown):
            await self._worker.until_right(what, patience_s=PATIENCE_S)
        if self._worker.engine.faults.open() or self._worker.engine.fatal is not None:
            self.done["reported as a fault"] += 1
            return
        await self._worker.until_right(what)  # nothing is said, so all has to be right, however slow the machine
        self.done["nothing was missing"] += 1

    async def _leave(self) -> None:
        """End the worker in order or as by a kill, and keep a backup of what it leaves."""
        killed = self._folder.with_name("killed")
        is_killed = self._source.random() < 0.5
        if is_killed:  # what a kill leaves is what the operating system has: the files as they are now
            copy_at_rest(self._folder, killed)
        await self._worker.stop()
        if is_killed:
            empty(self._folder)
            shutil.copytree(killed, self._folder, dirs_exist_ok=True)
            shutil.rmtree(killed)
        shutil.rmtree(self._backup, ignore_errors=True)
        shutil.copytree(self._folder, self._backup)

    def _damage(self) -> str:
        """Damage a file of the log, or its mark, or lose the whole folder; what was done."""
        source = self._source
        if source.random() < 0.05:
            shutil.rmtree(self._log)
            self.done["folder deleted"] += 1
            return "log/ deleted"
        files = [file for file in sorted(self._log.iterdir()) if file.stat().st_size and file.name != "LOCK"]
        if source.random() < 0.6:
            files = [file for file in files if file.suffix in (".sst", ".log") or "MANIFEST" in file.name]
        file = mark_path(self._log) if source.random() < 0.1 else source.choice(files)
        name = source.choice(list(DAMAGES))
        DAMAGES[name](file, source)
        self.done[name] += 1
        return f"{name} {file.name}"

    def _repair(self, what: str) -> bool:
        """Let a person repair the log; whether it was said that something is lost."""
        before = read_mark_or_none(self._log)
        try:
            report, done = repair_log(self._log, "chaos")
        except LogError as error:
            logging.info("not repaired: %s", error)
            return True
        self.done["repaired"] += 1
        logging.info("%s repaired: %s %s", what, done, report)
        return bool(report.lost_rows or report.damaged or before is None)

    async def _restore_backup(self, what: str, settled: dict[str, list[str]]) -> None:
        """Do what the advice says."""
        await self._worker.stop()
        empty(self._folder)
        shutil.copytree(self._backup, self._folder, dirs_exist_ok=True)
        self._worker.values.go_back(settled)
        await self._worker.start()
        await self._worker.until_right(f"{what}, backup restored")

    # ---- while a worker runs

    async def _damaged_while_running(self, what: str) -> None:
        """Change a bit of tables that are open, and change it back."""
        await self._worker.stop()
        await self._worker.start()  # nothing of the log is in memory then
        files = [file for file in sorted(self._log.glob("*.sst")) if file.stat().st_size]
        flips = [(file, self._source.randrange(file.stat().st_size)) for file in self._source.choices(files, k=3)]
        flips = list(dict.fromkeys(flips))
        what = f"{what}, flipped while it ran: {[(file.name, offset) for file, offset in flips]}"
        logging.info("---- %s", what)
        with flipped(flips):
            if self._source.random() < 0.5:
                with contextlib.suppress(*SAID):
                    await self._worker.rebuild()
            await self._worker.use("running", what)
            with contextlib.suppress(*SAID):
                await self._worker.values.read_all(self._worker.fed)
        await self._worker.until_right(what)
        self.done["healed by itself"] += 1

    async def _full(self, what: str) -> None:
        """Fill the disk up, and make room again."""
        logging.info("---- %s, full", what)
        ballast = self._folder / "ballast"
        room = self._source.randrange(ROOM_LEFT_BYTES)
        with ballast.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, shutil.disk_usage(self._folder).free - room))
        if self._source.random() < 0.5:
            with contextlib.suppress(*SAID):
                await self._worker.assign([])
                await self._worker.assign([0])
        await self._worker.use("full", what)
        ballast.unlink()
        await self._worker.until_right(f"{what}, room again")
        self.done["full"] += 1


@contextmanager
def flipped(flips: list[tuple[Path, int]]) -> Iterator[None]:
    """Let bits be others meanwhile; files that are deleted meanwhile stay so."""
    for file, offset in flips:
        flip_in_place(file, offset)
    try:
        yield
    finally:
        for file, offset in flips:
            with contextlib.suppress(FileNotFoundError):
                flip_in_place(file, offset)


def flip_in_place(file: Path, offset: int) -> None:
    """Change one bit of a file that is open elsewhere."""
    with file.open("r+b") as opened:
        opened.seek(offset)
        (byte,) = opened.read(1)
        opened.seek(offset)
        opened.write(bytes([byte ^ 1]))


def copy_at_rest(folder: Path, target: Path) -> None:
    """Copy a folder whose files may be merged meanwhile, as they are at one moment."""
    while True:
        before = {file: file.stat().st_size for file in folder.rglob("*") if file.exists()}
        with contextlib.suppress(OSError):
            shutil.copytree(folder, target)
            if before == {file: file.stat().st_size for file in folder.rglob("*")}:
                return
        shutil.rmtree(target, ignore_errors=True)


def empty(folder: Path) -> None:
    """Remove everything in a folder, which may be a mount point."""
    for found in folder.iterdir():
        shutil.rmtree(found) if found.is_dir() else found.unlink()


def read_mark_or_none(log: Path) -> object:
    """The mark of a log, None where it has none that can be read."""
    try:
        return read_mark(log)
    except LogError:
        return None


@contextmanager
def small_disk(folder: Path) -> Iterator[bool]:
    """Mount a disk of its own at a folder; whether that could be done, as only root may."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={SMALL_DISK_BYTES}", "tmpfs", str(folder)]
    is_mounted = shutil.which("mount") is not None and subprocess.run(command, check=False).returncode == 0
    try:
        yield is_mounted
    finally:
        if is_mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=True)


async def run(rounds: int, seed: int, folder: Path) -> Mapping[str, int]:
    """Play some rounds; how often each thing was done and each was the end of it. Raises AssertionError."""
    source = random.Random(seed)
    with small_disk(folder / "data") as has_own_disk:
        worker = DiskWorker("embedded://", folder / "data", source)
        playing = Rounds(worker, folder / "data", has_own_disk, source)
        try:
            await worker.begin()
            for number in range(rounds):
                await playing.play(number)
        finally:
            await worker.stop()
        return playing.done


def main() -> None:
    """Run, and print one line of JSON."""
    parser = argparse.ArgumentParser(description="damage the files of an embedded log, round after round")
    parser.add_argument("--rounds", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--log", type=Path, help="a file for what happens")
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO if options.log else logging.CRITICAL, filename=options.log)
    began = time.monotonic()
    use_small_buffers()
    with tempfile.TemporaryDirectory() as folder:
        done = asyncio.run(run(options.rounds, options.seed, Path(folder)))
    figures = {"benchmark": "damaged logs", "rounds": options.rounds, "seed": options.seed}
    print(json.dumps({**figures, **done, "seconds": round(time.monotonic() - began, 1)}))


if __name__ == "__main__":
    main()
