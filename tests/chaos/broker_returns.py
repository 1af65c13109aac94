"""The only broker stops in order, or is killed, again and again under load: `python -m tests.chaos.broker_returns`.

When it is back it may call transactions complete whose markers it never wrote (docs/kafka-markers.md). It has one core
and many partitions, so that it is slow to know their leaders. Rounds of a few stops and kills, each on a new broker:
after each the topics, tables, views and stores are compared. Prints a JSON line per round and one for all; exits with 1
when something is missing, there twice, or differs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import random
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Final

from tests.chaos.driver import Driver
from tests.chaos.faults import shuffled
from tests.chaos.report import Report
from tests.chaos.sagas import Sagas
from tests.chaos.scenario import run_on_kafka
from tests.chaos.workload import Urls
from tests.kafka import SHORT_LIVED, KafkaBroker, KafkaFailed, KafkaUnavailable, missing_tools

SLOW: Final = (*SHORT_LIVED, "-XX:ActiveProcessorCount=1")
SETTLED: Final = ("committed now", "aborted now", "restored from the beginning")  # how workers say what they did


PATIENCE_S: Final = 400.0  # most of the time the broker is away


class Patient(Sagas):
    """Orders of clients that ask for longer than elsewhere."""

    def driver(self, seed: int, urls: Urls, bootstrap: str | None, http_share: float, orders_per_s: float) -> Driver:
        """See Workload."""
        driver = super().driver(seed, urls, bootstrap, http_share, orders_per_s)
        driver.patience_s = PATIENCE_S
        return driver


def main() -> None:
    """Read the options, run, report."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.broker_returns", description=__doc__)
    parser.add_argument("--stops", type=int, default=200, help="orderly stops in all (default 200)")
    parser.add_argument("--kills", type=int, default=200, help="kills in all (default 200)")
    parser.add_argument("--per-round", type=int, default=20, help="how many of both there are in a round (default 20)")
    parser.add_argument("--seed", type=int, default=random.randrange(2**32), help="repeat the choices of a run")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--partitions", type=int, default=8, help="partitions of each topic (default 8)")
    parser.add_argument("--orders-per-s", type=float, default=25.0, help="load (default 25)")
    parser.add_argument("--dir", type=Path, help="where logs and data are kept (default: a new temporary folder)")
    options = parser.parse_args()
    logging.basicConfig(level=logging.CRITICAL)  # clients of a broker that is away have much to say
    folder = options.dir or Path(tempfile.mkdtemp(prefix="orders-broker-returns-"))
    print(f"seed {options.seed}; logs and data in {folder}", flush=True)
    if reason := missing_tools():
        sys.exit(reason)
    sys.exit(_run(options, folder))


def _run(options: argparse.Namespace, folder: Path) -> int:
    """All rounds; 1 when one of them found a problem. What a sound round leaves behind is removed."""
    sums: Counter[str] = Counter()
    rounds = max(1, (options.stops + options.kills) // options.per_round)
    for number in range(rounds):
        seed = options.seed + number
        stops = options.stops * (number + 1) // rounds - options.stops * number // rounds
        kills = options.kills * (number + 1) // rounds - options.kills * number // rounds
        report = _round(seed, shuffled(seed, broker_stops=stops, broker_restarts=kills), options, folder / str(number))
        figures = _figures(report)
        sums.update(figures)
        print(json.dumps({"chaos": "broker returns", "round": number + 1, "seed": seed, **figures}), flush=True)
        for line in _settled(report):
            print(line, file=sys.stderr, flush=True)
        if report.problems:
            print(report.text(), file=sys.stderr, flush=True)
        else:
            shutil.rmtree(folder / str(number))
    print(json.dumps({"chaos": "broker returns", "rounds": rounds, **sums}), flush=True)
    return 1 if sums["problems"] else 0


def _round(seed: int, schedule: list[str], options: argparse.Namespace, folder: Path) -> Report:
    # Workers that wait for long between tries would meet the broker when it is about to go again.
    workload = Patient("orchestration", ORDERS_PARTITIONS=str(options.partitions), ORDERS_RESTART_BACKOFF_MAX="1")
    try:
        with KafkaBroker(folder / "kafka", java_options=SLOW) as broker:
            run = run_on_kafka(
                seed, schedule, folder, broker, options.workers, options.orders_per_s, workload, pause_s=(5.0, 10.0)
            )
            return asyncio.run(run)
    except (KafkaUnavailable, KafkaFailed) as error:
        sys.exit(str(error))


def _figures(report: Report) -> dict[str, int]:
    """What is added up over rounds, with how often workers settled what had no markers."""
    counted = ("broker_stops", "broker_restarts", "orders", "lost", "duplicated")
    return {
        **{name: int(report.figures.get(name, 0)) for name in counted},
        "problems": sum(map(len, report.problems.values())),
        **{words: sum(words in line for line in _settled(report)) for words in SETTLED},
    }


def _settled(report: Report) -> list[str]:
    """The lines of the workers' logs that say what they settled."""
    logs = [worker.log_path.read_text(errors="replace") for worker in report.workers if worker.log_path.exists()]
    return [line for text in logs for line in text.splitlines() if any(words in line for words in SETTLED)]


if __name__ == "__main__":
    main()
