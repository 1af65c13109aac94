"""Faults: worker processes that are killed, frozen and woken, and a broker that is killed, at random moments."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp

from tests.kafka import KafkaBroker, kill_when_we_die, unused_port

ROOT = Path(__file__).resolve().parents[2]
WORKER: Sequence[str] = ("-m", "cli", "worker")
READY_TIMEOUT_S = 60.0
LOOK_DEADLINE_S = 30.0
STOP_TIMEOUT_S = 10.0  # promised: whoever sent SIGTERM may kill after it
LOG_TAIL_LINES = 40
START_MARK = "---- started at"
NOISE = "NotEnoughReplicasError"  # how a broker asks to wait for the end of the transaction before

PAUSE_S = (1.0, 6.0)  # between faults

KILL, KILL_AND_WIPE, KILL_ALL, FREEZE, BROKER = "kill", "kill and wipe", "kill all", "freeze", "broker"
BROKER_STOP = "broker stop"  # in order, as an operator restarts one
ROLLING = "rolling restart"
SKEW = "clock that jumps"
TRUNCATE, REFUSE, INTRUDER = "truncated changelog", "refused produce requests", "another app id"  # see log_faults.py
REMOVE, RECREATE = "records removed ahead of readers", "topic made anew"  # see loss_faults.py

SKEWED_WORKER: Sequence[str] = ("-m", "tests.chaos.skewed_worker")
SKEWS_S = (7200.0, -86_400.0, 40.0, -40.0)  # the first is more than Kafka takes


class WorkerEnded(Exception):
    """A worker ended although nobody ended it, or did not end when it was told to."""


class Worker:
    """One worker process with a data folder, a web port and a log file of its own, which outlive the process."""

    def __init__(
        self, name: str, folder: Path, broker: str, settings: Mapping[str, str], command: Sequence[str] = WORKER
    ) -> None:
        self.name = name
        self.folder = folder
        self.data_dir = folder / "data"
        self.log_path = folder / "worker.log"
        self.port = unused_port()
        self.frozen = False
        self.command = command
        self._environment = {
            "PYTHONPATH": str(ROOT),
            "ORDERS_BROKER": broker,
            "ORDERS_DATA_DIR": str(self.data_dir),
            "ORDERS_WEB_PORT": str(self.port),
            **settings,
        }
        self._process: subprocess.Popen[bytes] | None = None
        self._watcher: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Where its web view answers."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def running(self) -> bool:
        """Whether it was started and nobody has ended it; it may have ended by itself."""
        return self._process is not None

    def start(self, command: Sequence[str] | None = None, environment: Mapping[str, str] | None = None) -> None:
        """Start the process; what is given holds for this one life of it."""
        assert self._process is None
        self.folder.mkdir(parents=True, exist_ok=True)
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("ORDERS_")}
        with self.log_path.open("ab") as log:
            log.write(f"{START_MARK} {time.strftime('%H:%M:%S')}\n".encode())
            log.flush()
            # In its own folder no .env is found; in a session of its own Ctrl-C does not reach it.
            self._process = subprocess.Popen(
                [sys.executable, *(command or self.command)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={**inherited, **self._environment, **(environment or {})},
                start_new_session=True,
            )
        self._watcher = kill_when_we_die(self._process.pid)

    def kill(self) -> None:
        """SIGKILL, and wait for the end."""
        if self._process is not None:
            self._process.kill()
        self._reap()

    def freeze(self) -> None:
        """SIGSTOP."""
        assert self._process is not None
        self.frozen = True
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)

    def stop(self) -> float:
        """SIGTERM; how many seconds it took to end. Raises WorkerEnded when it does not end well in time."""
        assert self._process is not None
        began = time.monotonic()
        self._process.terminate()
        try:
            status = self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            raise WorkerEnded(f"worker {self.name} did not end within {STOP_TIMEOUT_S:.0f} s of SIGTERM") from None
        finally:
            self.kill()
        if status != 0:
            raise WorkerEnded(f"worker {self.name} ended with status {status} on SIGTERM")
        return time.monotonic() - began

    def check(self) -> None:
        """Raise WorkerEnded when it has ended by itself."""
        if self._process is not None and (status := self._process.poll()) is not None:
            raise WorkerEnded(f"worker {self.name} ended by itself with status {status}")

    def froze(self) -> bool:
        """Whether it was stopped by a signal since this was asked last; raises WorkerEnded when it has ended."""
        assert self._process is not None
        pid, status = os.waitpid(self._process.pid, os.WNOHANG | os.WUNTRACED)
        if pid and not os.WIFSTOPPED(status):
            raise WorkerEnded(f"worker {self.name} ended by itself: {os.waitstatus_to_exitcode(status)}")
        return pid != 0

    def wait(self, timeout_s: float) -> int:
        """Wait for its end; the status, negative for a signal."""
        assert self._process is not None
        try:
            return self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            raise WorkerEnded(f"worker {self.name} was to end by itself, and did not in {timeout_s:.0f} s") from None
        finally:
            self.kill()

    def wipe(self) -> None:
        """Lose its data folder."""
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def log_tail(self, lines: int = LOG_TAIL_LINES) -> str:
        """The last lines of its log."""
        if not self.log_path.exists():
            return ""
        kept = [line for line in self.log_path.read_text(errors="replace").splitlines() if NOISE not in line]
        return "\n".join(kept[-lines:])

    def log_of_this_life(self) -> str:
        """Its log since it was started last."""
        return self.log_path.read_text(errors="replace").rpartition(START_MARK)[2]

    def _reap(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()
            self._watcher = None
        self.frozen = False

    async def partitions(self) -> list[int] | None:
        """The numbers it owns, all restored; None while it is not ready."""
        try:
            timeout = aiohttp.ClientTimeout(total=2)
            async with aiohttp.ClientSession(timeout=timeout) as http, http.get(f"{self.url}/readyz") as answer:
                return list((await answer.json())["partitions"]) if answer.status == 200 else None
        except (aiohttp.ClientError, OSError):
            return None

    async def ready(self) -> list[int]:
        """Wait until it is ready; the numbers it owns."""
        deadline = time.monotonic() + READY_TIMEOUT_S
        while (numbers := await self.partitions()) is None:
            self.check()
            if time.monotonic() > deadline:
                raise WorkerEnded(f"worker {self.name} is not ready after {READY_TIMEOUT_S:.0f} s")
            await asyncio.sleep(0.1)
        return numbers


@dataclass
class Fault:
    """What was done when (seconds since 1970), when its cause was over, and how long until all partitions went on.

    `recovery_s` counts from `began_at` and is known afterwards; other faults may have come meanwhile.
    """

    kind: str
    target: str
    began_at: float
    ended_at: float = 0.0
    recovery_s: float | None = None

    def __str__(self) -> str:
        clock = time.strftime("%H:%M:%S", time.localtime(self.began_at))
        milliseconds = int(self.began_at % 1 * 1000)
        recovered = "" if self.recovery_s is None else f", all partitions went on after {self.recovery_s:.1f} s"
        return (
            f"{clock}.{milliseconds:03d} {self.kind} {self.target} for {self.ended_at - self.began_at:.1f} s{recovered}"
        )


@dataclass
class Faults:
    """Carries out a schedule of kinds on random workers; freezes overlap with what follows them.

    Pauses and lengths are seconds, drawn from the ranges given. `look` is called while all workers are killed, which
    waits until that `is_worth_a_look`. Each rolling restart brings the next of `releases`, after the last one the
    first again. `sigterm_s` is how long workers took to end when they were told to. `others` does what a fault of
    another kind is.
    """

    seed: int
    workers: Sequence[Worker]
    broker: KafkaBroker | None = None
    pause_s: tuple[float, float] = PAUSE_S
    down_s: tuple[float, float] = (0.0, 2.0)
    freeze_s: tuple[float, float] = (5.0, 6.0)
    look: Callable[[], Awaitable[None]] | None = None
    is_worth_a_look: Callable[[], bool] = lambda: True
    releases: Sequence[Sequence[str]] = (WORKER,)
    others: Mapping[str, Callable[[random.Random], Awaitable[None]]] = field(default_factory=dict)
    done: list[Fault] = field(default_factory=list)
    sigterm_s: list[float] = field(default_factory=list)

    async def run(self, schedule: Iterable[str]) -> None:
        """Carry out the whole schedule, then leave everything running."""
        rnd = random.Random(self.seed)
        freezes: set[asyncio.Task[None]] = set()
        try:
            for kind in schedule:
                await asyncio.sleep(rnd.uniform(*self.pause_s))
                self.check()
                if kind in (BROKER, BROKER_STOP):
                    await self._lose_broker(kind, rnd.uniform(*self.down_s))
                    continue
                if kind == KILL_ALL:
                    await self._something_to_look_at()
                    await self._kill_all()
                    continue
                if kind in self.others:
                    await asyncio.gather(*freezes, *(worker.ready() for worker in self.workers))
                    with self._noted(kind, "the log"):
                        await self.others[kind](rnd)
                    continue
                if kind == ROLLING:
                    await asyncio.gather(*freezes)
                    await self._roll()
                    continue
                while not (awake := [worker for worker in self.workers if not worker.frozen]):
                    frozen = {freeze for freeze in freezes if not freeze.done()}
                    await asyncio.wait(frozen, return_when=asyncio.FIRST_COMPLETED)
                worker = rnd.choice(awake)
                if kind == FREEZE:
                    freezes.add(asyncio.create_task(self._freeze(worker, rnd.uniform(*self.freeze_s))))
                    await asyncio.sleep(0)
                elif kind == SKEW:
                    await self._skew(worker, rnd.choice(SKEWS_S), rnd.uniform(*self.freeze_s))
                else:
                    await self._kill(worker, kind, rnd.uniform(*self.down_s))
            await asyncio.gather(*freezes)
        finally:
            for freeze in freezes:
                freeze.cancel()
            await asyncio.gather(*freezes, return_exceptions=True)
        self.check()

    async def _something_to_look_at(self) -> None:
        deadline = time.monotonic() + LOOK_DEADLINE_S
        while not self.is_worth_a_look() and time.monotonic() < deadline:
            self.check()
            await asyncio.sleep(0.05)

    def check(self) -> None:
        """Raise WorkerEnded when a worker has ended by itself."""
        for worker in self.workers:
            worker.check()

    def count(self, *kinds: str) -> int:
        """How many faults of these kinds there were."""
        return sum(fault.kind in kinds for fault in self.done)

    @contextlib.contextmanager
    def _noted(self, kind: str, target: str) -> Iterator[None]:
        fault = Fault(kind, target, time.time())
        self.done.append(fault)
        try:
            yield
        finally:
            fault.ended_at = time.time()

    async def _kill(self, worker: Worker, kind: str, down_s: float) -> None:
        with self._noted(kind, worker.name):
            worker.kill()
            if kind == KILL_AND_WIPE:
                worker.wipe()
            await asyncio.sleep(down_s)
            worker.start()

    async def _skew(self, worker: Worker, skew_s: float, length_s: float) -> None:
        """Let a worker run with a clock that is off, and then with the right one again."""
        with self._noted(f"{SKEW} by {skew_s:+.0f} s", worker.name):
            worker.kill()
            worker.start(SKEWED_WORKER, {"SKEW_S": str(skew_s)})
            await asyncio.sleep(length_s)
            worker.kill()
            worker.start()

    async def _kill_all(self) -> None:
        with self._noted(KILL_ALL, "all workers"):
            for worker in self.workers:
                worker.kill()
            if self.look is not None:
                await self.look()
            for worker in self.workers:
                worker.start()

    async def _roll(self) -> None:
        """Restart one worker after the other as the next release, each when the one before it is ready."""
        release = self.releases[(self.count(ROLLING) + 1) % len(self.releases)]
        await asyncio.gather(*(worker.ready() for worker in self.workers))
        with self._noted(ROLLING, "all workers"):
            for worker in self.workers:
                self.sigterm_s.append(await asyncio.to_thread(worker.stop))
                worker.command = release
                worker.start()
                await worker.ready()

    async def _freeze(self, worker: Worker, freeze_s: float) -> None:
        with self._noted(FREEZE, worker.name):
            worker.freeze()
            try:
                await asyncio.sleep(freeze_s)
            finally:
                worker.thaw()

    async def _lose_broker(self, kind: str, down_s: float) -> None:
        assert self.broker is not None
        with self._noted(kind, "broker"):
            await asyncio.to_thread(self.broker.stop if kind == BROKER_STOP else self.broker.kill)
            await asyncio.sleep(down_s)
            await asyncio.to_thread(self.broker.start)


def shuffled(seed: int, **counts: int) -> list[str]:
    """A schedule with so many faults of each kind, in random order."""
    kinds = {
        "kills": KILL,
        "wipes": KILL_AND_WIPE,
        "kills_of_all": KILL_ALL,
        "freezes": FREEZE,
        "broker_restarts": BROKER,
        "broker_stops": BROKER_STOP,
        "rolling_restarts": ROLLING,
        "skews": SKEW,
        "truncations": TRUNCATE,
        "refusals": REFUSE,
        "intruders": INTRUDER,
        "removals": REMOVE,
        "recreations": RECREATE,
    }
    schedule = [kinds[name] for name, count in counts.items() for _ in range(count)]
    random.Random(seed).shuffle(schedule)
    return schedule


def for_minutes(seed: int, minutes: float, kills_of_all: bool = False) -> Iterable[str]:
    """Faults that lose nothing at random until the time is over; kills of all workers at once only if wanted."""
    rnd, until = random.Random(seed), time.monotonic() + minutes * 60
    while time.monotonic() < until:
        kinds = (KILL, KILL_AND_WIPE, FREEZE, BROKER, BROKER_STOP, ROLLING, SKEW, TRUNCATE, REFUSE, INTRUDER, KILL_ALL)
        yield rnd.choices(kinds, (50, 20, 25, 5, 5, 5, 5, 5, 5, 2, 10 * kills_of_all))[0]
