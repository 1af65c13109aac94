"""An error at every call that a partition task makes, from its start to its end: its keeper gets over each of them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from streams.engine.batch import Batch, StaleBatch
from streams.transport.base import TransportError
from tests.apps import HandFed, Tally, make_settings, wait_until
from tests.injection import Injection

KEYS = ("key-0", "key-1")
AWAITS = {f"producer.{name}" for name in ("start", "begin", "send", "send_offsets", "flush", "commit", "close")} | {
    f"reader.{name}" for name in ("start", "bounds", "fetch", "close")
}
STORE_CALLS = {"rocksdb", "rocksdb.get", "rocksdb.iter.status", "rocksdb.write", "rocksdb.close", "reader.seek"}
HEALING_S = 10.0
ERRORS: dict[str, Callable[[str], BaseException]] = {
    "a mistake": lambda name: RuntimeError(f"injected into {name}"),
    "a cancellation": lambda name: asyncio.CancelledError(f"injected into {name}"),
    "the transport": lambda name: TransportError(f"injected into {name}"),
    "a full disk": lambda name: OSError(f"IO error: No space left on device: injected into {name}"),
}


class Fed(HandFed):
    """An engine that is fed as by a driver: with what comes next in the log, in each life of its partition anew."""

    def __init__(self, data_dir: Path, tally: Tally) -> None:
        settings = make_settings("memory://", data_dir, partitions=1, restart_backoff=0.001, restart_backoff_max=0.002)
        super().__init__(settings, [tally.service])
        self.tally = tally
        self.written = 0

    async def feed(self) -> None:
        """Feed one fetch after the other, until it is cancelled."""
        topic, broker = self.tally.source.name, self.engine.broker
        while True:
            await asyncio.sleep(0.001)
            task = self.engine.tasks.get(0)
            if task is None or not task.is_running():
                continue
            records, _ = broker.log.read(topic, 0, task.fetch_offset(topic))  # type: ignore[attr-defined]
            if not records:
                self.engine.polled(())
                continue
            fetched = task.fetched(topic, records[:2], records[:2][-1].offset + 1)
            try:
                await Batch(fetched, Tally.AGENT).process(self.tally.handle)
            except StaleBatch:
                continue
            except Exception as error:  # as the agents' feed does
                task.fail(error)

    async def write_all(self, value: str) -> None:
        """Write a value of each key, and wait until it is committed."""
        values: list[Any] = [(key.encode(), value.encode(), ()) for key in KEYS]
        await self.engine.broker.publish(self.tally.source.name, 0, values)
        self.written += len(values)
        await self.is_done()

    async def is_done(self) -> None:
        """Wait until everything that was written is committed."""
        await wait_until(self._has_all, "the partition has got over it", HEALING_S)

    def _has_all(self) -> bool:
        task = self.engine.tasks.get(0)
        return (
            self.engine.is_ready()
            and task is not None
            and (task.reached(Tally.AGENT, self.tally.source.name) >= self.written)
        )


@asynccontextmanager
async def fed(data_dir: Path) -> AsyncIterator[Fed]:
    fed = Fed(data_dir, Tally())
    await fed.engine.start(fed.hand)
    feeding = asyncio.create_task(fed.feed())
    try:
        yield fed
        assert not feeding.done()
    finally:
        feeding.cancel()
        await fed.engine.stop()


async def live_twice(fed: Fed) -> None:
    """A life of a partition with commits, its end, and another life."""
    engine = fed.engine
    await engine.assigned([0], 1)
    await fed.write_all("a")
    await engine.revoked()
    await engine.assigned([], 2)
    assert not engine.tasks
    await engine.assigned([0], 3)
    await fed.write_all("b")


@pytest.mark.parametrize(
    ("error", "how"),
    [
        ("a mistake", {"awaits_only": True}),
        ("the transport", {"awaits_only": True, "streak": 2, "after": True}),
        ("a full disk", {"streak": 4}),
        ("a cancellation", {"awaits_only": True}),
    ],
)
async def test_an_error_at_any_call_of_a_partition_is_got_over_and_every_record_counts_once(
    tmp_path: Path, error: str, how: dict[str, Any]
) -> None:
    failed, at = set[str](), 0
    while True:
        injection = Injection(at, ERRORS[error], **how)
        async with fed(tmp_path / str(at)) as app:
            with injection.install(app.engine.broker):
                await live_twice(app)
            assert app.engine.fatal is None
            assert not app.engine.faults.open()
            await app.tally.check(app, {key: ["a", "b"] for key in KEYS})  # type: ignore[arg-type]
        if not injection.failed:
            break
        failed |= injection.failed
        at += 1
    assert failed >= (AWAITS if "awaits_only" in how else AWAITS | STORE_CALLS)
