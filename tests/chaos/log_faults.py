"""Faults of the log and of those who look after it: what operators do by mistake, and mend again.

Each is begun and ended by itself, so that a run can have any number of them between other faults.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import aiohttp

from tests.chaos.faults import INTRUDER, REFUSE, TRUNCATE, Worker, WorkerEnded
from tests.lost_records import admin_of, configure, remove_records

COMMANDS: Final = "order-commands"
TABLES: Final = ("positions", "orders", "order-history", "handled-commands")
BYTES_MAX: Final = "4195328"  # as the workers create the topic
PATIENCE_S: Final = 60.0


Do = Callable[[random.Random], Awaitable[None]]


class NotMended(Exception):
    """What an operator did to mend a fault had no effect in time."""


class LogFaults:
    """Does to a Kafka what an operator may do to it; `urls` are the addresses of the workers."""

    def __init__(self, bootstrap: str, urls: Callable[[], Sequence[str]], app_id: str = "orders") -> None:
        self._bootstrap = bootstrap
        self._urls = urls
        self._app_id = app_id

    def by_kind(self, folder: Path, settings: Mapping[str, str]) -> Mapping[str, Do]:
        """What is done for each kind of fault; folder and settings are those of the worker that intrudes."""
        return {
            TRUNCATE: self.truncate,
            REFUSE: self.refuse,
            INTRUDER: lambda rnd: self.intrude(folder, settings),
        }

    async def truncate(self, rnd: random.Random) -> None:
        """Remove all records of a changelog's partition; then let its owner write its rows anew from the store."""
        topic = f"{self._app_id}-{rnd.choice(TABLES)}-changelog"
        async with admin_of(bootstrap_servers=self._bootstrap) as admin:
            (described,) = await admin.describe_topics([topic])
            number = rnd.randrange(len(described["partitions"]))
            await remove_records(admin, topic, number)
        await self._post(f"/partitions/{number}/repair", {"from": "store", "reason": "chaos"})

    async def refuse(self, rnd: random.Random) -> None:
        """Let the topic of commands refuse everything for a moment."""
        async with admin_of(bootstrap_servers=self._bootstrap) as admin:
            await configure(admin, COMMANDS, {"max.message.bytes": "100"})
            await asyncio.sleep(rnd.uniform(0.5, 2.0))
            await configure(admin, COMMANDS, {"max.message.bytes": BYTES_MAX})

    async def intrude(self, folder: Path, settings: Mapping[str, str]) -> None:
        """Start a worker of another application on the same topics: it has to end by itself, with status 1."""
        intruder = Worker("intruder", folder, f"kafka://{self._bootstrap}", {**settings, "ORDERS_APP_ID": "other"})
        intruder.start()
        status = await asyncio.to_thread(intruder.wait, PATIENCE_S)
        if status != 1 or "orders adopt" not in intruder.log_of_this_life():
            raise WorkerEnded(f"a worker of another application ended with {status}:\n{intruder.log_tail()}")

    async def _post(self, path: str, body: Mapping[str, str]) -> None:
        """Ask any worker until one has done it."""
        deadline, last = time.monotonic() + PATIENCE_S, ""
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=PATIENCE_S)) as http:
            while time.monotonic() < deadline:
                for url in self._urls():
                    try:
                        async with http.post(url + path, json=body) as answer:
                            if answer.status < 300:
                                return
                            last = f"{answer.status} {await answer.text()}"
                    except (aiohttp.ClientError, TimeoutError, OSError) as error:
                        last = repr(error)
                await asyncio.sleep(0.2)
        raise NotMended(f"POST {path}: {last}")
