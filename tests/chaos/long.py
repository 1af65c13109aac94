"""The long chaos run on real Kafkas of its own: `make chaos`, or `python -m tests.chaos.long --minutes 30 --seed 7`.

Three phases. First rolling restarts between two releases, while clients look for the orders they place: how long that
takes, and how long workers take to end, is in the figures. Then faults that lose records, among others: commands are
removed before they are read, and topics are made anew under the workers; exactly what is gone must be named, and all
must go on when that is accepted. Then faults of all other kinds at random. Unless told otherwise, handlers fail at
random then; all workers are killed at once now and then, and every record must be applied, waiting, a dead letter or
discarded at that moment. Prints its seed first and one JSON line per figure at the end of each phase;
exits with 1 when the verifier found a problem.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

from tests.chaos.failures import FailingCommands, FailingSagas
from tests.chaos.faults import for_minutes
from tests.chaos.loss_faults import losses_for_minutes
from tests.chaos.report import Report
from tests.chaos.rolling import Rolling, back_and_forth
from tests.chaos.sagas import STYLES, Sagas
from tests.chaos.scenario import run_on_kafka
from tests.chaos.workload import Commands, Workload
from tests.kafka import KafkaBroker, KafkaFailed, KafkaUnavailable, missing_tools


def main() -> None:
    """Read the options, run, report."""
    options = _options()
    logging.basicConfig(level=logging.CRITICAL)  # clients of a broker that is away have much to say
    folder = options.dir or Path(tempfile.mkdtemp(prefix="orders-chaos-"))
    print(f"seed {options.seed}; logs and data in {folder}", flush=True)
    if reason := missing_tools():
        sys.exit(reason)
    reports = []
    if options.rolling_minutes > 0 and not options.losses:
        # With the simulator: a gateway that keeps orders waiting for long would be no news.
        calm: Workload = Rolling(Commands() if options.saga == "none" else Sagas(options.saga))
        reports.append(_run("rolling", calm, back_and_forth(options.rolling_minutes), options, folder / "rolling"))
    if options.loss_minutes > 0 and not options.rolling:
        # Without sagas: exactly what must come of the commands that are left is known then.
        lossy = losses_for_minutes(options.seed, options.loss_minutes)
        reports.append(_run("losses", Commands(), lossy, options, folder / "losses"))
    if not options.rolling and not options.losses:
        failing = _failing_workload(options, folder) if options.failures else _workload(options)
        schedule = for_minutes(options.seed, options.minutes, kills_of_all=options.failures)
        reports.append(_run("faults", failing, schedule, options, folder / "faults"))
    sys.exit(1 if any(report.problems for report in reports) else 0)


def _options() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.long", description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0, help="how long there are faults (default 30)")
    parser.add_argument(
        "--rolling-minutes", type=float, default=3.0, help="how long there are rolling restarts before (default 3)"
    )
    parser.add_argument(
        "--loss-minutes", type=float, default=3.0, help="how long there are faults that lose records (default 3)"
    )
    parser.add_argument("--rolling", action="store_true", help="rolling restarts alone, for --rolling-minutes")
    parser.add_argument("--losses", action="store_true", help="faults that lose records alone, for --loss-minutes")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="repeat the choices of a run")
    parser.add_argument("--workers", type=int, default=3, help="worker processes (default 3)")
    parser.add_argument("--orders-per-s", type=float, default=40.0, help="load (default 40)")
    parser.add_argument(
        "--saga",
        choices=("none", *STYLES, "mixed"),
        default="mixed",
        help="style of sagas, another one at each worker (mixed, the default), or none: commands of orders alone",
    )
    parser.add_argument(
        "--payments", choices=("http", "simulator"), default="http", help="how sagas take money (default http)"
    )
    parser.add_argument(
        "--failures",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="let handlers fail at random, clients send rubbish, operators retry and discard dead letters (default)",
    )
    parser.add_argument("--dir", type=Path, help="where logs and data are kept (default: a new temporary folder)")
    return parser.parse_args()


def _workload(options: argparse.Namespace) -> Workload:
    return Commands() if options.saga == "none" else Sagas(options.saga, options.payments == "http")


def _failing_workload(options: argparse.Namespace, folder: Path) -> Workload:
    if options.saga == "none":
        return FailingCommands(folder)
    return FailingSagas(Sagas(options.saga, options.payments == "http"), folder)


def _run(phase: str, workload: Workload, schedule: Iterable[str], options: argparse.Namespace, folder: Path) -> Report:
    """Run a phase on a broker of its own and print its figures."""
    try:
        with KafkaBroker(folder / "kafka") as broker:
            run = run_on_kafka(options.seed, schedule, folder, broker, options.workers, options.orders_per_s, workload)
            report = asyncio.run(run)
    except (KafkaUnavailable, KafkaFailed) as error:
        sys.exit(str(error))
    for name, value in report.figures.items():
        print(json.dumps({"chaos": name, "value": value, "phase": phase, "seed": report.seed}), flush=True)
    if report.problems:
        print(report.text(), file=sys.stderr)
    return report


if __name__ == "__main__":
    main()
