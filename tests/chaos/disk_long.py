"""All runs of damage and of calls that fail, one after the other, those on Kafka on a broker of their own.

500 rounds in all, each kind in a process of its own that prints a line of JSON; exits with 1 when one of them fails.

    python -m tests.chaos.disk_long [--seed 1] [--times 1]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests import faulty_disk
from tests.kafka import KafkaBroker, KafkaFailed, KafkaUnavailable, missing_tools


def runs(kafka: str) -> Iterator[tuple[str, str | None, int]]:
    """Modules with their broker and their number of rounds."""
    yield "tests.chaos.disk", "memory://", 120
    yield "tests.chaos.disk", kafka, 50
    yield "tests.chaos.disk_log", None, 150
    yield "tests.chaos.disk_faults", "embedded://", 130
    yield "tests.chaos.disk_faults", kafka, 50


def command(module: str, broker: str | None, rounds: int, seed: int) -> Sequence[str]:
    """The command line of one run."""
    options = ["--rounds", str(rounds), "--seed", str(seed)]
    return [sys.executable, "-m", module, *options, *(["--broker", broker] if broker is not None else [])]


def main() -> None:
    """Run all of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.disk_long", description=__doc__)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--times", type=int, default=1, help="so many times the 500 rounds")
    options = parser.parse_args()
    if reason := missing_tools() or faulty_disk.why_not_here():
        sys.exit(reason)
    failed = False
    try:
        with tempfile.TemporaryDirectory() as folder, KafkaBroker(Path(folder)) as broker:
            for run in runs(f"kafka://{broker.bootstrap}"):
                module, url, rounds = run
                done = subprocess.run(command(module, url, rounds * options.times, options.seed), check=False)
                failed = failed or done.returncode != 0
    except (KafkaUnavailable, KafkaFailed) as error:
        sys.exit(str(error))
    sys.exit(failed)


if __name__ == "__main__":
    main()
