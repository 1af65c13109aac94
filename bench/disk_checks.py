"""What the checks of what a disk gives back cost: CPU time per record of the orders job, and per row of a restore.

Rounds with and without the checks take turns, each on an embedded log and a store of its own; the fastest of each kind
count, others were disturbed. Without them there are no checksums of
blocks that are read, no paranoid checks of RocksDB, no mark of the log that follows each commit and no note beside the
store. Left in is the question for its status after a scan, which is one call. A scrub is bounded otherwise: see
bench.store_proof.

- `record_us`, `record_percent`: one record of the orders job, decoded, one row read and written, committed to log and
  store; what the checks add to it.
- `restore_us`, `restore_percent`: one row of a changelog, read from the log and written to an empty store.
- `record_quartiles`, `restore_quartiles`: each round with the checks held against the one without them beside it: a
  quarter, a half and three quarters of these percentages are below. They say how quiet the machine was.
- `mark_us`: the mark that follows one commit, measured by itself.

    python -m bench.disk_checks [--records 20000] [--rounds 60]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import shutil
import statistics
import tempfile
import time
import timeit
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import msgspec
from rocksdict import Options, Rdict, ReadOptions

from bench.metrics_cost import FETCH, INPUT, counting, service
from bench.produce import records as orders
from engine.declare.application import Application
from engine.log.embedded import opening as log_opening
from engine.log.embedded import storage as log_storage
from engine.log.embedded.mark import MarkFile
from engine.log.ports import Record
from engine.store import opening, store
from tests.apps import HandFed, hand_fed, make_settings, process

MARKS = 10_000


class Cost(msgspec.Struct, frozen=True):
    """The line of output; times are CPU time, of the fastest round with the checks."""

    benchmark: str
    records: int
    rounds: int
    record_us: float
    record_percent: float
    record_quartiles: list[float]
    restore_us: float
    restore_percent: float
    restore_quartiles: list[float]
    mark_us: float


class Round(NamedTuple):
    """CPU seconds per record and per restored row."""

    record_s: float
    row_s: float


async def measure(count: int, rounds: int) -> Cost:
    """Play rounds in turns, after one that warms up."""
    values = [(key, value) for _, key, value in orders(count)]
    await _round(values)
    pairs: list[tuple[Round, Round]] = []
    for number in range(rounds):
        found = {}
        for checked in (True, False) if number % 2 else (False, True):
            with contextlib.nullcontext() if checked else without_checks():
                found[checked] = await _round(values)
        pairs.append((found[True], found[False]))
    costs = [[(checked[part] / unchecked[part] - 1) * 100 for checked, unchecked in pairs] for part in range(2)]
    fastest = [[min(pair[way][part] for pair in pairs) for part in range(2)] for way in range(2)]
    percents = [round((with_s / without_s - 1) * 100, 1) for with_s, without_s in zip(*fastest, strict=True)]
    micros = [round(seconds * 1e6, 2) for seconds in fastest[0]]
    cuts = [[round(cut, 1) for cut in statistics.quantiles(cost)] for cost in costs]
    return Cost(
        "disk checks", count, rounds, micros[0], percents[0], cuts[0], micros[1], percents[1], cuts[1], _mark_us()
    )


def _mark_us() -> float:
    """Microseconds of CPU time of the mark of one commit, the fastest of some rounds."""
    with tempfile.TemporaryDirectory() as name:
        database, mark = log_opening.open_log(Path(name) / "log")
        fastest = min(timeit.repeat(lambda: mark.advance(1), number=MARKS, repeat=7, timer=time.process_time))
        mark.close(None)
        database.close()
        return round(fastest / MARKS * 1e6, 2)


async def _round(values: Sequence[tuple[bytes | None, bytes]]) -> Round:
    """The orders job, and then a restore of its store."""
    with tempfile.TemporaryDirectory() as name:
        settings = make_settings("embedded://", Path(name), partitions=1)
        async with hand_fed(settings, [service]) as fed:
            record_s = await _handle(fed, values) / len(values)
        shutil.rmtree(fed.engine.store_path(0))
        fed = HandFed(settings, [service])
        await fed.engine.start(fed.hand)
        began = time.process_time()
        await fed.assign([0], 1)
        used = time.process_time() - began
        rows = fed.engine.tasks[0].progress.applied
        await fed.engine.stop()
        return Round(record_s, used / rows)


async def _handle(fed: HandFed, values: Sequence[tuple[bytes | None, bytes]]) -> float:
    """CPU seconds for handling and committing these records."""
    records = [Record(index, 0, key, value, ()) for index, (key, value) in enumerate(values)]
    began = time.process_time()
    for first in range(0, len(records), FETCH):
        await process(fed.fetch(0, INPUT, records[first : first + FETCH]), counting.name, fed.bound(counting))
    await fed.engine.tasks[0].suspend()  # commits what is open
    return time.process_time() - began


@contextlib.contextmanager
def without_checks() -> Iterator[None]:
    """Open stores and logs without checks meanwhile."""
    with ExitStack() as patches:
        for module in (store, log_opening):
            patches.enter_context(patch.object(module, "_options", _trusting(module._options)))
        patches.enter_context(patch.object(store, "_read_options", _unverified))
        patches.enter_context(patch.object(log_storage, "open_log", _open_unverified))
        patches.enter_context(patch.object(MarkFile, "advance", _advance_once))
        patches.enter_context(patch.object(opening, "note_marks", lambda opened: None))
        yield


_advance = MarkFile.advance


def _advance_once(mark: MarkFile, sequence: int, is_closed: bool = False) -> None:
    """Write the mark of a log that is opened, and not after each commit."""
    if not hasattr(mark, "was_written"):
        _advance(mark, sequence)
        mark.was_written = True  # type: ignore[attr-defined]


def _trusting(options: Any) -> Any:
    def make(*arguments: Any) -> Options:
        made: Options = options(*arguments)
        made.set_paranoid_checks(False)
        return made

    return make


def _unverified() -> ReadOptions:
    options = ReadOptions()
    options.set_verify_checksums(False)
    return options


def _open_unverified(folder: Path, application: Application) -> tuple[Rdict, MarkFile]:
    database, mark = log_opening.open_log(folder, application)
    database.set_read_options(_unverified())
    return database, mark


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description="what the checks of what a disk gives back cost")
    parser.add_argument("--records", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=60)
    options = parser.parse_args()
    logging.disable()  # the records are in no log, and it is said that they are missing
    print(msgspec.json.encode(asyncio.run(measure(options.records, options.rounds))).decode())


if __name__ == "__main__":
    main()
