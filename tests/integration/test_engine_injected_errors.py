"""An error at every call that a partition task makes, from its start to its end: its keeper gets over each of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engine.log.ports import TransportError
from tests.feeding import Fed, fed
from tests.injection import Injection

KEYS = ("key-0", "key-1")
AWAITS = {f"producer.{name}" for name in ("start", "begin", "send", "send_offsets", "flush", "commit", "close")} | {
    f"reader.{name}" for name in ("start", "bounds", "fetch", "close")
}
STORE_CALLS = {"rocksdb", "rocksdb.get", "rocksdb.iter.status", "rocksdb.write", "rocksdb.close", "reader.seek"}
ERRORS: dict[str, Callable[[str], BaseException]] = {
    "a mistake": lambda name: RuntimeError(f"injected into {name}"),
    "a cancellation": lambda name: asyncio.CancelledError(f"injected into {name}"),
    "the transport": lambda name: TransportError(f"injected into {name}"),
    "a full disk": lambda name: OSError(f"IO error: No space left on device: injected into {name}"),
}


async def live_twice(fed: Fed) -> None:
    """A life of a partition with commits, its end, and another life."""
    engine = fed.engine
    await engine.assigned([0], 1)
    await fed.write_all(KEYS, "a")
    await engine.revoked()
    await engine.assigned([], 2)
    assert not engine.tasks
    await engine.assigned([0], 3)
    await fed.write_all(KEYS, "b")


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
