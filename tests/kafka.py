"""A real single-node Kafka from Maven Central jars, for tests and for development (`make kafka`)."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import os
import random
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from string import Template
from types import FrameType
from typing import IO, NoReturn, Self

OPS = Path(__file__).resolve().parent.parent / "ops" / "kafka"
POM = OPS / "pom.xml"
VERSION = ET.parse(POM).findtext(".//{*}kafka.version", default="")

JAVA_VERSION_MIN = 17
CLUSTER_ID = "b3JkZXJzLWV2ZW50cy0wMQ"  # fixed, so that kept data is accepted again; 16 bytes in base64
# Brokers of tests live for seconds: without the optimising compiler they start a second sooner and leave us more CPU.
SHORT_LIVED = ("-Xmx512m", "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 20.0
LOG_TAIL_LINES = 30

# Below every system's ephemeral range: while a broker is down, no client's outgoing connection can take its port.
PORTS = range(20_000, 30_000)


class KafkaUnavailable(Exception):
    """This machine cannot run a broker: no Java, no Maven, or the jars could not be fetched."""


class KafkaFailed(Exception):
    """The broker did not start; the message ends with the tail of its log."""


def missing_tools() -> str | None:
    """Say what keeps this machine from running a broker, or None when nothing does."""
    if (found := java_version()) is None:
        return f"Java {JAVA_VERSION_MIN}+ is not installed"
    if found < JAVA_VERSION_MIN:
        return f"Java {found} is too old, Java {JAVA_VERSION_MIN}+ is needed"
    if not _jars_complete(jar_dir()) and shutil.which("mvn") is None:
        return "Maven (mvn) is not installed"
    return None


def java_version() -> int | None:
    """Return the major version of the `java` on the path, or None when there is none."""
    try:
        banner = subprocess.run(["java", "-version"], capture_output=True, text=True, check=True, timeout=30).stderr
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', banner)
    return int(found[1]) if found else None


def jar_dir() -> Path:
    """Return the folder that keeps the broker's jars: ORDERS_KAFKA_JARS, or one in the user's cache."""
    if given := os.environ.get("ORDERS_KAFKA_JARS"):
        return Path(given).absolute()
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "orders-events" / f"kafka-{VERSION}"


def resolve_jars() -> Path:
    """Return the folder with the broker's jars, fetching them once with Maven (about 45 MB).

    Raises:
        KafkaUnavailable: Maven is missing or could not fetch them.
    """
    target = jar_dir()
    if _jars_complete(target):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        fetched = Path(scratch) / "jars"
        command = ["mvn", "-q", "-B", "-f", str(POM), "dependency:copy-dependencies", f"-DoutputDirectory={fetched}"]
        try:
            done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
        except OSError as error:
            raise KafkaUnavailable(f"Maven could not be started: {error}") from error
        if done.returncode != 0:
            raise KafkaUnavailable(f"Maven could not fetch Kafka {VERSION}:\n{_tail(done.stdout)}")
        shutil.copy(POM, fetched)
        # Another process may have been quicker; its jars are the same.
        if not _jars_complete(target):
            shutil.rmtree(target, ignore_errors=True)
            with contextlib.suppress(OSError):
                fetched.rename(target)
    return target


def _jars_complete(folder: Path) -> bool:
    """Whether the folder was filled, completely, from the present pom."""
    kept = folder / POM.name
    return kept.is_file() and kept.read_bytes() == POM.read_bytes()


def _own_ports() -> Iterator[int]:
    """Ports of this process, in turn: what is down for a moment, or not up yet, does not lose its port to another."""
    process = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = len(PORTS) // int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    own = PORTS[process * share : (process + 1) * share - 1]  # so that the one above each is not another process's
    first = random.SystemRandom().randrange(share)  # tests seed the other one
    return itertools.cycle((*own[first:], *own[:first]))


_ports = _own_ports()


def unused_port(also_next: bool = False) -> int:
    """Return a loopback TCP port that nobody listens on; with `also_next`, the one above it is free as well."""
    for port in itertools.islice(_ports, 200):
        if port_is_free(port) and (not also_next or port_is_free(port + 1)):
            if also_next:
                next(_ports)
            return port
    raise RuntimeError(f"no free port in {PORTS}")


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this loopback port now."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@dataclass(frozen=True)
class Extras:
    """What a node has beside its plain listener: others on ports of their own, properties, and options of `format`."""

    listeners: Mapping[str, tuple[str, int]] = field(default_factory=dict)  # by name: security protocol and port
    properties: Mapping[str, str] = field(default_factory=dict)
    format_options: Sequence[str] = ()

    def placeholders(self) -> Mapping[str, str]:
        """What takes their places in server.properties."""
        return {
            "listeners": "".join(f",{name}://127.0.0.1:{port}" for name, (_, port) in self.listeners.items()),
            "protocols": "".join(f",{name}:{protocol}" for name, (protocol, _) in self.listeners.items()),
            "properties": "".join(f"{name}={value}\n" for name, value in self.properties.items()),
        }


class KafkaBroker:
    """One Kafka node on loopback that ends with this process, even if this process is killed.

    Its data stays in `folder`, and its port the same, over `restart()`. Methods block: in a coroutine, call
    them through `asyncio.to_thread`. `properties` are its settings, those of ops/kafka unless told otherwise.
    """

    def __init__(
        self,
        folder: Path,
        port: int | None = None,
        java_options: Sequence[str] = SHORT_LIVED,
        extras: Extras | None = None,
        properties: str | None = None,
    ) -> None:
        """Say where it lives; `extras` add to what every node has."""
        self.folder = folder.absolute()
        self.extras = extras or Extras()
        self._template = Template(properties or (OPS / "server.properties").read_text())
        self.port = port or unused_port(also_next=True)
        self.java_options = tuple(java_options)
        self.log_path = self.folder / "kafka.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def bootstrap(self) -> str:
        """The address clients connect to, as host:port."""
        return f"127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether the broker's process is alive."""
        return self._process is not None and self._process.poll() is None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the broker on its folder and wait until it answers.

        Raises:
            KafkaUnavailable: the jars could not be had.
            KafkaFailed: it ended or did not answer within START_TIMEOUT_S.
        """
        if self.running:
            raise RuntimeError("the broker is already running")
        for port in (self.port, self.port + 1):
            if not port_is_free(port):
                raise KafkaFailed(f"port {port} is in use")
        jars = resolve_jars()
        data = self.folder / "data"
        data.mkdir(parents=True, exist_ok=True)
        properties = self.folder / "server.properties"
        ports = {"port": self.port, "controller_port": self.port + 1, "data_dir": data}
        properties.write_text(self._template.substitute(ports, **self.extras.placeholders()))
        with self.log_path.open("ab") as log:
            if not (data / "meta.properties").exists():
                self._format(jars, properties, log)
            self._process = self._java(jars, ["kafka.Kafka", str(properties)], log)
        self._watcher = kill_when_we_die(self._process.pid)
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """End the broker properly (SIGTERM), or by force when it takes longer than STOP_TIMEOUT_S."""
        if self._process is not None:
            self._process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(STOP_TIMEOUT_S)
        self.kill()

    def kill(self) -> None:
        """End the broker at once (SIGKILL), as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None

    def restart(self) -> None:
        """Stop the broker and start it again with the same data on the same port."""
        self.stop()
        self.start()

    def wait(self) -> int:
        """Wait for the broker's process to end by itself and return its exit status."""
        if self._process is None:
            raise RuntimeError("the broker is not running")
        return self._process.wait()

    def log_tail(self) -> str:
        """Return the last lines of the broker's log."""
        return _tail(self.log_path.read_text(errors="replace"))

    def _format(self, jars: Path, properties: Path, log: IO[bytes]) -> None:
        arguments = [
            "kafka.tools.StorageTool",
            "format",
            "-t",
            CLUSTER_ID,
            "-c",
            str(properties),
            *self.extras.format_options,
        ]
        if self._java(jars, arguments, log).wait(START_TIMEOUT_S) != 0:
            raise KafkaFailed(f"the data folder could not be formatted:\n{self.log_tail()}")

    def _java(self, jars: Path, arguments: list[str], log: IO[bytes]) -> subprocess.Popen[bytes]:
        command = ["java", *self.java_options, "-Dlog4j2.level=WARN", "-cp", f"{jars}/*", *arguments]
        # A session of its own: Ctrl-C reaches us only, and we end the broker in order.
        return subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self.folder, start_new_session=True
        )

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not _answers(self.port):
            if not self.running:
                raise KafkaFailed(f"Kafka ended while it started:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise KafkaFailed(f"Kafka did not answer within {START_TIMEOUT_S:.0f} s:\n{self.log_tail()}")
            time.sleep(0.05)


def kill_when_we_die(pid: int) -> subprocess.Popen[bytes]:
    """Start a process that waits for the end of ours (its input closes) and then kills `pid`.

    Unlike a death signal from the kernel this works on every system, and from whichever thread the broker is started.
    """
    script = f"read -r _; kill -9 {pid}"
    return subprocess.Popen(
        ["sh", "-c", script], stdin=subprocess.PIPE, stderr=subprocess.DEVNULL, start_new_session=True
    )


def _answers(port: int) -> bool:
    """Whether the broker lists itself in its metadata (or another one, in a cluster), so that clients can use it."""
    # Metadata request, version 1, correlation id 1, client id "probe", no topics.
    body = struct.pack(">hhih5si", 3, 1, 1, 5, b"probe", 0)
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
            connection.sendall(struct.pack(">i", len(body)) + body)
            answer = connection.makefile("rb").read(12)
    except OSError:
        return False
    # Length, correlation id, number of brokers.
    return len(answer) == 12 and struct.unpack(">iii", answer)[2] >= 1


def _tail(text: str) -> str:
    return "\n".join(text.splitlines()[-LOG_TAIL_LINES:])


def main() -> None:
    """Run one broker in the foreground until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="python -m tests.kafka", description=main.__doc__)
    parser.add_argument("--port", type=int, default=9092, help="clients connect here; the next one up is used too")
    parser.add_argument("--dir", type=Path, required=True, help="data and log; kept, and used again next time")
    parser.add_argument("--heap", default="1g", help="the JVM's heap, as -Xmx takes it (default 1g)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, _interrupt)
    broker = KafkaBroker(options.dir, options.port, [f"-Xmx{options.heap}"])
    try:
        if reason := missing_tools():
            raise KafkaUnavailable(reason)
        print(f"Starting Kafka {VERSION} ...", flush=True)
        with broker:
            print(f"Kafka answers at {broker.bootstrap}; its data and log are in {options.dir}. Ctrl-C ends it.")
            sys.stdout.flush()
            status = broker.wait()
            sys.exit(f"Kafka ended with status {status}:\n{broker.log_tail()}")
    except (KafkaUnavailable, KafkaFailed) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("Kafka has ended.")


def _interrupt(_signal: int, _frame: FrameType | None) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
