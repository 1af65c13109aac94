"""The orders job with poison among its records, beside a clean run: what do records that cannot be processed cost?

100,000 good records, and 10,000 among them that cannot be processed (see `poisoned` in bench/produce.py). The figure is
good records per second, measured as in bench/orders_job.py; every good record has to come out once. Clean and poisoned
runs take turns on one broker. `peak_memory_mib` is the worker's peak resident memory (Linux).

    python -m bench.poison [--records 100000] [--poison 10000] [--rounds 3] [--bootstrap localhost:9092]
"""

import argparse
import asyncio
import statistics
import sys
import uuid

import msgspec

from bench.broker import delete_topics, running_broker
from bench.orders_job import RunFailed, run_system
from bench.produce import produce
from bench.restore import peak_memory_mib
from bench.systems import SYSTEMS, WORK_DIR
from tests.kafka import KafkaFailed, KafkaUnavailable


class Run(msgspec.Struct, frozen=True):
    """One line of output."""

    benchmark: str
    input: str
    round: int
    good_records: int
    poison_records: int
    good_records_per_s: float
    peak_memory_mib: float


class Verdict(msgspec.Struct, frozen=True):
    """The last line: medians, and how many times as long a good record takes among poison."""

    benchmark: str
    clean_per_s: float
    poisoned_per_s: float
    slowdown: float


def measure(bootstrap: str, records: int, poison: int, rounds: int) -> Verdict:
    """Run clean and poisoned input in turn, and print a line for each run."""
    prefix = f"poison-{uuid.uuid4().hex[:6]}"
    rates: dict[str, list[float]] = {"clean": [], "poisoned": []}
    try:
        for kind in rates:
            every = records // poison if kind == "poisoned" else 0
            asyncio.run(produce(bootstrap, f"{prefix}-{kind}", records, every))
        for number in range(1, rounds + 1):
            for kind, found in rates.items():
                memory: list[float] = []
                measured = run_system(
                    SYSTEMS["ours"],
                    bootstrap,
                    f"{prefix}-{kind}",
                    records,
                    f"{prefix}-{kind}-{number}",
                    lambda pid, memory=memory: memory.append(peak_memory_mib(pid)),  # type: ignore[misc]
                )
                found.append(measured.records_per_s)
                bad = poison if kind == "poisoned" else 0
                show(Run("poison", kind, number, records, bad, round(found[-1], 1), round(memory[0], 1)))
    finally:
        asyncio.run(delete_topics(bootstrap, prefix))
    clean, poisoned = (statistics.median(found) for found in rates.values())
    return Verdict("poison", round(clean, 1), round(poisoned, 1), round(clean / poisoned, 2))


def show(line: msgspec.Struct) -> None:
    """Print a JSON line."""
    print(msgspec.json.encode(line).decode(), flush=True)


def main() -> None:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.poison", description="What poison costs the good records.")
    parser.add_argument("--records", type=int, default=100_000)
    parser.add_argument("--poison", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bootstrap", help="a running broker, host:port, instead of one of its own")
    options = parser.parse_args()
    if not 1 <= options.poison <= options.records or options.rounds < 1:
        parser.error("--poison must be from 1 to --records, and --rounds at least 1")
    WORK_DIR.mkdir(exist_ok=True)
    try:
        with running_broker(options.bootstrap, WORK_DIR) as bootstrap:
            show(measure(bootstrap, options.records, options.poison, options.rounds))
    except (KafkaFailed, KafkaUnavailable, RunFailed) as error:
        sys.exit(str(error))


if __name__ == "__main__":
    main()
