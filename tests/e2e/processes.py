"""Commands and workers as processes of their own, with nothing of this machine's settings."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import httpx
import pytest

from tests.kafka import kill_when_we_die

REPOSITORY = Path(__file__).resolve().parents[2]
SAMPLE = REPOSITORY / "examples" / "online-retail-sample.csv.gz"
ORDERS = (sys.executable, "-m", "cli")
ORDERS_OF_4FFE7DF = (sys.executable, "-m", "agents.cli")
FAUST = (sys.executable, "-m", "faust", "-A", "streams.app")
DEADLINE_S = 150.0  # far beyond what anything here takes: reaching it is a failure, not slowness
STOP_DEADLINE_S = 10.0  # promised: whoever sent SIGTERM may kill after it


class Site:
    """A folder, settings, and the commands that are run with them."""

    def __init__(self, folder: Path, port: int, **settings: object) -> None:
        self.folder = folder
        self.url = f"http://127.0.0.1:{port}"
        self.settings = {"ORDERS_DATA_DIR": str(folder / "data"), "ORDERS_WEB_PORT": str(port)}
        self.settings |= {f"ORDERS_{name.upper()}": str(value) for name, value in settings.items()}

    def environment(self, changes: Mapping[str, str]) -> dict[str, str]:
        """Only what a command needs to find its Python, and the settings."""
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
        return {**kept, "PYTHONPATH": str(REPOSITORY), "PYTHONWARNINGS": "default", **self.settings, **changes}

    def run(self, *arguments: str, command: Sequence[str] = ORDERS, **changes: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; `changes` are environment variables."""
        return subprocess.run(
            [*command, *arguments],
            env=self.environment(changes),
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )

    def start(self, *arguments: str, command: Sequence[str] = ORDERS, **changes: str) -> Running:
        """Start a command that stays."""
        return Running(self, [*command, *arguments], self.environment(changes))

    def get(self, path: str, **query: Any) -> Any:
        """The JSON at a path of the worker."""
        return httpx.get(self.url + path, params=query or None, timeout=DEADLINE_S).raise_for_status().json()

    def status(self, path: str) -> int | None:
        """The HTTP status of a path, None when nobody answers."""
        try:
            return httpx.get(self.url + path, timeout=DEADLINE_S).status_code
        except httpx.TransportError:
            return None


class Running:
    """A process that ends with this one; in a `with` block it is killed at the end, whatever happens."""

    def __init__(self, site: Site, command: Sequence[str], environment: Mapping[str, str]) -> None:
        self._site = site
        self._log = site.folder / f"process-{time.monotonic_ns()}.log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(command, env=environment, cwd=site.folder, stdout=log, stderr=log)
        self._watcher = kill_when_we_die(self.process.pid)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._watcher.kill()
        self._watcher.communicate()

    @property
    def output(self) -> str:
        """What it has written so far."""
        return self._log.read_text()

    def wait_until(self, condition: Callable[[], object], what: str) -> None:
        """Return when `condition` holds; fails the test when the process ends before, or in too long a time."""
        deadline = time.monotonic() + DEADLINE_S
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"in vain until {what} (exit status {self.process.poll()}):\n{self.output}")
            time.sleep(0.02)

    def wait_until_it_says(self, text: str) -> None:
        """Wait until it has written `text`."""
        self.wait_until(lambda: text in self.output, f"it says {text!r}")

    def wait_until_ready(self) -> None:
        """Wait until the worker has all its partitions."""
        self.wait_until(lambda: self._site.status("/readyz") == 200, "the worker is ready")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal; the exit status. Fails the test when the process needs longer than promised."""
        self.process.send_signal(number)
        try:
            return self.process.wait(STOP_DEADLINE_S)
        except subprocess.TimeoutExpired:
            pytest.fail(f"not stopped within {STOP_DEADLINE_S:.0f} s of {number.name}:\n{self.output}")


def without_privileges(command: Sequence[str]) -> Sequence[str]:
    """The command so that file permissions bind it even when root runs the tests; skips where that cannot be done."""
    if os.geteuid() != 0:
        return command
    if shutil.which("setpriv") is None:
        pytest.skip("root is not bound by file permissions, and setpriv is not there to change that")
    return ("setpriv", "--bounding-set=-all", "--inh-caps=-all", *command)
