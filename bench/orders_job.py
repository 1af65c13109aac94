"""The orders job on this project and its peers, interleaved on one broker.

For each input record: decode the whole envelope, update its customer's {count, total} in a RocksDB table with a
changelog, and emit one derived event `order.accepted`. How it is measured: bench/measure.py.

    python -m bench.orders_job --records 1500000 --rounds 3 [--systems ours,quix] [--bootstrap localhost:9092]

Prints one JSON line per run and one per system to stdout, then a table; progress goes to stderr.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import msgspec

from bench.broker import create_topic, delete_topics, running_broker
from bench.measure import OUTPUT_CONFIGS, Measurement, NotFinished, measure_output
from bench.produce import produce
from bench.systems import ROOT, SYSTEMS, WORK_DIR, CannotPrepare, System
from tests.kafka import KafkaFailed, KafkaUnavailable

BENCHMARK = "orders-job"
RUN_TIMEOUT_S = 600.0
STOP_TIMEOUT_S = 30.0
LOG_TAIL_LINES = 30


class RunFailed(Exception):
    """A system ended early, did not finish or broke its promise; the message ends with the tail of its log."""


class Summary(msgspec.Struct, frozen=True):
    """The runs of one system; `records_per_s` is their median."""

    benchmark: str
    system: str
    guarantee: str
    records: int
    records_per_s: float
    min: float
    max: float


def run_systems(systems: Sequence[System], bootstrap: str, records: int, rounds: int) -> list[Summary]:
    """Produce the input once, then run all systems in turn, round after round, printing a line for each run."""
    prefix = f"bench-{uuid.uuid4().hex[:6]}"
    counts = {system.name: min(records, system.records_max or records) for system in systems}
    sources = {count: f"{prefix}-orders-{count}" for count in set(counts.values())}
    measurements: dict[str, list[Measurement]] = {system.name: [] for system in systems}
    try:
        for count, source in sources.items():
            _progress(f"producing {count:,} records")
            asyncio.run(produce(bootstrap, source, count))
        for number in range(1, rounds + 1):
            for system in systems:
                _progress(f"round {number} of {rounds}: {system.name}")
                count = counts[system.name]
                run = f"{prefix}-{system.name}-{number}"
                measurement = run_system(system, bootstrap, sources[count], count, run)
                measurements[system.name].append(measurement)
                _print_json({"benchmark": BENCHMARK, "round": number, "system": system.name}, measurement)
    finally:
        asyncio.run(delete_topics(bootstrap, prefix))
    return [summarise_runs(system, measurements[system.name]) for system in systems]


def run_system(
    system: System,
    bootstrap: str,
    source: str,
    count: int,
    run: str,
    look_at: Callable[[int], None] = lambda pid: None,
) -> Measurement:
    """Run one system over all records of `source`, from an empty state, and measure its output.

    `look_at` is called with the id of the system's process when it is through, before it is stopped.

    Raises:
        RunFailed: it ended early, did not finish, or has duplicates where it promises exactly once.
    """
    output = f"{run}-output"
    asyncio.run(create_topic(bootstrap, output, OUTPUT_CONFIGS))
    log_path = WORK_DIR / f"{run}.log"
    with TemporaryDirectory(prefix=f"{run}-", dir=WORK_DIR) as state_dir:
        environment = {
            **os.environ,
            **system.environment,
            "BENCH_BOOTSTRAP": bootstrap,
            "BENCH_SOURCE": source,
            "BENCH_OUTPUT": output,
            "BENCH_RUN": run,
            "BENCH_STATE_DIR": state_dir,
        }
        with _process(system.command, environment, log_path) as process:

            def check_running() -> None:
                if process.poll() is not None:
                    raise RunFailed(f"{system.name} ended with status {process.returncode}:\n{_tail(log_path)}")

            try:
                measurement = asyncio.run(measure_output(bootstrap, output, count, RUN_TIMEOUT_S, check_running))
            except NotFinished as error:
                raise RunFailed(f"{system.name}: {error}:\n{_tail(log_path)}") from error
            look_at(process.pid)
    asyncio.run(delete_topics(bootstrap, run))
    if system.guarantee == "exactly_once" and measurement.records != count:
        raise RunFailed(f"{system.name} promises exactly once, but made {measurement.records} records of {count}")
    log_path.unlink()
    return measurement


@contextmanager
def _process(
    command: Sequence[str], environment: dict[str, str], log_path: Path
) -> Iterator["subprocess.Popen[bytes]"]:
    """Run a process that is gone afterwards, in order if it can be."""
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            command, env=environment, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def summarise_runs(system: System, measurements: Sequence[Measurement]) -> Summary:
    """Take the median and the range over the runs of a system."""
    rates = [measurement.records_per_s for measurement in measurements]
    return Summary(
        benchmark=BENCHMARK,
        system=system.name,
        guarantee=system.guarantee,
        records=measurements[0].records,
        records_per_s=round(statistics.median(rates), 1),
        min=min(rates),
        max=max(rates),
    )


def table(summaries: Sequence[Summary]) -> str:
    """Lay the systems out as a Markdown table, with how many times as fast as each of them ours is."""
    ours = next((summary.records_per_s for summary in summaries if summary.system == "ours"), None)
    rows = [
        "| system | guarantee | records | records/s (median) | range | ours is |",
        "|---|---|--:|--:|--:|--:|",
    ]
    for summary in summaries:
        ratio = f"{ours / summary.records_per_s:.2f}x" if ours is not None and summary.system != "ours" else ""
        rows.append(
            f"| {summary.system} | {summary.guarantee.replace('_', ' ')} | {summary.records:,}"
            f" | {summary.records_per_s:,.0f} | {summary.min:,.0f} to {summary.max:,.0f} | {ratio} |"
        )
    return "\n".join(rows)


def _print_json(head: dict[str, object], measurement: Measurement) -> None:
    print(msgspec.json.encode(head | msgspec.structs.asdict(measurement)).decode(), flush=True)


def _progress(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _tail(log_path: Path) -> str:
    return "\n".join(log_path.read_text(errors="replace").splitlines()[-LOG_TAIL_LINES:])


def main() -> None:
    """Run the benchmark as the command line says."""
    parser = argparse.ArgumentParser(prog="python -m bench.orders_job", description="The orders job, system by system.")
    parser.add_argument("--records", type=int, default=1_500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", default=",".join(SYSTEMS), help="of %(default)s")
    parser.add_argument("--bootstrap", help="a running broker, host:port, instead of one of its own")
    options = parser.parse_args()
    names = options.systems.split(",")
    if unknown := [name for name in names if name not in SYSTEMS]:
        parser.error(f"unknown system {', '.join(unknown)}; there are {', '.join(SYSTEMS)}")
    if options.records < 1 or options.rounds < 1:
        parser.error("--records and --rounds must be at least 1")
    WORK_DIR.mkdir(exist_ok=True)
    systems = [SYSTEMS[name] for name in names]
    try:
        for prepare in dict.fromkeys(system.prepare for system in systems if system.prepare is not None):
            _progress(prepare.__doc__ or "")
            prepare()
        with running_broker(options.bootstrap, WORK_DIR) as bootstrap:
            summaries = run_systems(systems, bootstrap, options.records, options.rounds)
    except (CannotPrepare, KafkaFailed, KafkaUnavailable, RunFailed) as error:
        sys.exit(str(error))
    for summary in summaries:
        print(msgspec.json.encode(summary).decode())
    print("\n" + table(summaries))


if __name__ == "__main__":
    main()
