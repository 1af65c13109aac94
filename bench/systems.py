"""The systems that run the orders job: what each promises, how it is built and how it is started.

A system is a process. It gets all it has to know from the environment and works until it is told to stop (SIGTERM):

- `BENCH_BOOTSTRAP`: the broker, host:port;
- `BENCH_SOURCE`, `BENCH_OUTPUT`: topics that exist, with PARTITIONS partitions each;
- `BENCH_RUN`: a name no other run has, for group, application and transactional ids and internal topics;
- `BENCH_STATE_DIR`: an empty folder for its tables;
- what `System.environment` adds.
"""

import shutil
import subprocess
import sys
import venv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import msgspec

ROOT = Path(__file__).resolve().parent.parent
WORK_DIR = ROOT / ".bench"
PEERS = ROOT / "bench" / "peers"

QUIX_VENV = WORK_DIR / "quix-venv"
QUIX_PYTHON = QUIX_VENV / "bin" / "python"
KAFKA_STREAMS_DIR = WORK_DIR / "kafka-streams"


class CannotPrepare(Exception):
    """A peer cannot be built here; the message says what is missing."""


class System(msgspec.Struct, frozen=True):
    """One column of the comparison; `records_max` keeps a slow system's runs as short as the others'."""

    name: str
    guarantee: Literal["exactly_once", "at_least_once"]
    command: tuple[str, ...]
    environment: Mapping[str, str] = {}
    records_max: int | None = None
    prepare: Callable[[], None] | None = None


def prepare_quix() -> None:
    """Install Quix Streams into an environment of its own: its dependencies conflict with Faust's."""
    wanted, installed = PEERS / "requirements-quix.txt", QUIX_VENV / "requirements.txt"
    if installed.exists() and installed.read_bytes() == wanted.read_bytes():
        return
    venv.create(QUIX_VENV, with_pip=True, clear=True)
    _run([str(QUIX_PYTHON), "-m", "pip", "install", "--quiet", "--no-deps", "--requirement", str(wanted)])
    shutil.copy(wanted, installed)


def prepare_kafka_streams() -> None:
    """Compile the Java peer and fetch its dependencies."""
    if shutil.which("mvn") is None or shutil.which("java") is None:
        raise CannotPrepare("Kafka Streams needs Java 17+ and Maven (mvn) on the path")
    pom = PEERS / "kafka_streams" / "pom.xml"
    _run(["mvn", "-q", "-B", "-f", str(pom), "package", f"-Dbench.directory={KAFKA_STREAMS_DIR}"])


def _run(command: list[str]) -> None:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if done.returncode != 0:
        raise CannotPrepare(f"{' '.join(command)} failed:\n{done.stdout}")


def _kafka_streams(name: str, guarantee: Literal["exactly_once", "at_least_once"]) -> System:
    class_path = f"{KAFKA_STREAMS_DIR / 'orders-job.jar'}:{KAFKA_STREAMS_DIR / 'libs'}/*"
    return System(
        name=name,
        guarantee=guarantee,
        command=("java", "-cp", class_path, "bench.OrdersJob"),
        environment={"BENCH_GUARANTEE": {"exactly_once": "exactly_once_v2"}.get(guarantee, guarantee)},
        prepare=prepare_kafka_streams,
    )


SYSTEMS = {
    system.name: system
    for system in (
        System("ours", "exactly_once", (sys.executable, "-m", "bench.worker")),
        System(
            name="stock_faust",
            guarantee="at_least_once",
            command=(
                *(sys.executable, "-m", "bench.peers.stock_faust"),
                *("--loop", "uvloop", "worker", "--loglevel", "warn", "--without-web"),
            ),
            records_max=50_000,
        ),
        System(
            name="quix",
            guarantee="exactly_once",
            command=(str(QUIX_PYTHON), str(PEERS / "quix.py")),
            environment={"BENCH_GUARANTEE": "exactly-once"},
            prepare=prepare_quix,
        ),
        _kafka_streams("kafka_streams_eos", "exactly_once"),
        _kafka_streams("kafka_streams_alo", "at_least_once"),
    )
}
