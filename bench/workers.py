"""Real workers as subprocesses, for benchmarks of the whole application."""

import asyncio
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp

from bench.systems import ROOT

READY_TIMEOUT_S = 120.0
STOP_TIMEOUT_S = 20.0


def free_port() -> int:
    """A loopback port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@asynccontextmanager
async def running_worker(
    data_dir: Path, environment: Mapping[str, str]
) -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """Start `orders worker`, wait until it is ready, yield its address and process, and stop it.

    Raises RuntimeError with the tail of its log when it ends or is not ready in time.
    """
    port, log_path = free_port(), data_dir.with_suffix(".log")
    settings = {"ORDERS_WEB_PORT": str(port), "ORDERS_DATA_DIR": str(data_dir), **environment}
    with log_path.open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "cli",
            "worker",
            cwd=ROOT,
            env={**os.environ, **settings},
            stdout=log,
            stderr=log,
        )
    url = f"http://127.0.0.1:{port}"
    try:
        await _wait_until_ready(url, process, log_path)
        yield url, process
    finally:
        if process.returncode is None:
            process.send_signal(signal.SIGTERM)
            await asyncio.wait_for(process.wait(), STOP_TIMEOUT_S)


async def _wait_until_ready(url: str, process: asyncio.subprocess.Process, log_path: Path) -> None:
    async with aiohttp.ClientSession() as session, asyncio.timeout(READY_TIMEOUT_S):
        while process.returncode is None:
            try:
                async with session.get(f"{url}/readyz") as answer:
                    if answer.status == 200:
                        return
            except aiohttp.ClientError:
                pass
            await asyncio.sleep(0.05)
    raise RuntimeError(f"the worker ended:\n{log_path.read_text()[-2000:]}")
