"""What a proof of a store's rows costs: a count and a checksum in each write, or a scrub of its blocks beside it.

Rows are written as a restore writes them, first each once, then all again in another order, with and without the
proof, in turns. A count and a checksum that do not depend on the order need the old row of each key that is written.

- `write_us`, `proven_us`: one row in a batch of a restore, without and with count and checksum; `cost_percent` is the
  difference.
- `scrub_rows_per_s`: rows that a scrub reads while it reads; `scrub_percent` is its share of one core.

    python -m bench.store_proof [--rows 200000]
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from zlib import crc32

import msgspec

from engine.log.ports import Outgoing
from engine.store.scrub import SHARE
from engine.store.store import ChangelogMark, Store

BATCH = 2000
ROW_BYTES = 300
PREFIX = b"rows\0"
ROUNDS = 3


class Cost(msgspec.Struct, frozen=True):
    """The line of output; times are CPU time."""

    benchmark: str
    rows: int
    write_us: float
    proven_us: float
    cost_percent: float
    scrub_rows_per_s: float
    scrub_percent: float


def write_all(store: Store, rows: Sequence[Outgoing], proven: bool) -> float:
    """Write all rows in batches; CPU seconds that it took."""
    count = checksum = 0
    began = time.process_time()
    for first in range(0, len(rows), BATCH):
        batch = rows[first : first + BATCH]
        if proven:
            for key, value, _ in batch:
                old = store.get(PREFIX + (key or b""))
                if old is None:
                    count += 1
                else:
                    checksum ^= crc32(old, crc32(key or b""))
                checksum ^= crc32(value or b"", crc32(key or b""))
        store.write([(PREFIX, batch)], {"log": ChangelogMark(first)})
    return time.process_time() - began


def measure(rows: int) -> Cost:
    """Both ways in turns; the fastest round of each counts."""
    source = random.Random(1)
    first = [(b"%08d" % number, source.randbytes(ROW_BYTES), ()) for number in range(rows)]
    again = source.sample(first, rows)
    best = {False: float("inf"), True: float("inf")}
    with tempfile.TemporaryDirectory() as folder:
        for turn in range(ROUNDS):
            for proven in (False, True):
                store = Store(Path(folder) / f"{turn}-{proven}")
                best[proven] = min(best[proven], sum(write_all(store, part, proven) for part in (first, again)))
                if not proven or turn < ROUNDS - 1:
                    store.close()
        store.close()
        store = Store(store.path)
        began = time.process_time()
        store.scrub(b"", float("inf"))
        scrub_s = time.process_time() - began
        store.close()
    plain, proof = (best[proven] / (2 * rows) * 1e6 for proven in (False, True))
    percent = (proof / plain - 1) * 100
    return Cost("store proof", rows, round(plain, 2), round(proof, 2), round(percent, 1), rows / scrub_s, SHARE * 100)


def main() -> None:
    """Measure and print one line of JSON."""
    parser = argparse.ArgumentParser(description="what a proof of a store's rows costs")
    parser.add_argument("--rows", type=int, default=200_000)
    print(msgspec.json.encode(measure(parser.parse_args().rows)).decode())


if __name__ == "__main__":
    main()
