"""What a run costs: CPU seconds of worker, broker and this client, and the worker's commits.

Rates depend on what else the machine does; CPU per order hardly does. Linux only (`/proc`): elsewhere the figures are
absent.
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import aiohttp
import msgspec

PROC = Path("/proc")
LISTENING = "0A"
_COUNTER = re.compile(r"^(commits|committed_records)_total ([0-9.e+]+)$", re.MULTILINE)


class Cost(msgspec.Struct, frozen=True, omit_defaults=True):
    """CPU in milliseconds per order, None where it cannot be had; commits of all workers."""

    worker_cpu_ms_per_order: float | None = None
    broker_cpu_ms_per_order: float | None = None
    client_cpu_ms_per_order: float | None = None
    commits: int | None = None
    records_per_commit: float | None = None
    broker_cpu_ms_per_commit: float | None = None


class Meter:
    """Readings of CPU and commits; `cost` is what has come to them since `start`."""

    def __init__(self, bootstrap: str, workers: Mapping[str, int]) -> None:
        """`workers`: process ids by the address of the web view."""
        self._workers = workers
        self._broker = listener(int(bootstrap.rpartition(":")[2]))
        self._before: dict[str, float] = {}

    async def start(self) -> None:
        """Read everything for the first time."""
        self._before = await self._read()

    async def cost(self, orders: int) -> Cost:
        """What has been used since the start, for that many orders."""
        after = await self._read()
        used = {name: after[name] - before for name, before in self._before.items() if name in after}
        commits = used.get("commits")

        def each(name: str, by: float | None) -> float | None:
            return round(used[name] * 1000 / by, 3) if name in used and by else None

        return Cost(
            each("worker", orders),
            each("broker", orders),
            each("client", orders),
            int(commits) if commits is not None else None,
            round(used["committed_records"] / commits, 1) if commits else None,
            each("broker", commits),
        )

    async def _read(self) -> dict[str, float]:
        read = await _counters([*self._workers])
        for name, pids in (
            ("worker", [*self._workers.values()]),
            ("broker", [self._broker] if self._broker is not None else []),
            ("client", [os.getpid()]),
        ):
            seconds = [cpu_s(pid) for pid in pids]
            if seconds and None not in seconds:
                read[name] = sum(second for second in seconds if second is not None)
        return read


async def _counters(urls: Sequence[str]) -> dict[str, float]:
    """Counters of `/metrics`, summed over the workers."""
    sums: dict[str, float] = {}
    async with aiohttp.ClientSession() as session:
        for url in urls:
            async with session.get(f"{url}/metrics") as answer:
                for name, value in _COUNTER.findall(await answer.text()):
                    sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def cpu_s(pid: int) -> float | None:
    """CPU seconds of a process and all its threads, None where there is no such process or no /proc."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def listener(port: int) -> int | None:
    """Id of the process on this machine that listens on a TCP port, None when it cannot be found."""
    sockets = {f"socket:[{inode}]" for inode in _listening_inodes(port)}
    for folder in PROC.glob("[0-9]*/fd") if sockets else ():
        with suppress(OSError):
            if any(os.readlink(link) in sockets for link in folder.iterdir()):
                return int(folder.parent.name)
    return None


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("tcp", "tcp6"):
        with suppress(OSError):
            for line in (PROC / "net" / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTENING and int(fields[1].rpartition(":")[2], 16) == port:
                    inodes.add(fields[9])
    return inodes
