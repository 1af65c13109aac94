"""A worker with handlers that cannot be interrupted: `python -m tests.chaos.stuck_worker`.

STUCK_NAME is the name its topic and table begin with. A record's value says what its handler does, see VALUES; with
STUCK_WRITES the worker writes them, as one batch, when it is ready.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from engine.declare.envelope import Envelope, Metadata, encode_envelope, new_envelope
from engine.declare.service import Service
from engine.declare.table import Table
from engine.declare.timers import Timer
from engine.declare.topic import Topic
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.app import EngineApp
from engine.faust.worker import run_in_loop, serve
from engine.observe.logs import configure_logging
from streams.app import create_app
from streams.settings import load_settings
from tests.apps import Seen, keys_beside, publish_keyed
from tests.integration.test_engine_outside import Ask
from tests.unit.test_envelope import TEN_O_CLOCK

KEY = "key"
WAITING, GO, RETURNED = Path("waiting"), Path("go"), Path("returned")  # in the worker's folder
WORDS = {
    "handler": ("a", "stuck", "b", "stuck too", "c"),
    "timer": ("a", "timer", "b"),
    "call": ("a", "prepare", "b", "call", "c"),
    "wait": ("a", "wait", "b"),
}


def never_return() -> None:
    """Swallow whatever is raised here."""
    while True:
        with contextlib.suppress(BaseException):
            time.sleep(0.01)


def wait_for_go() -> None:
    """Return once the test says so, and let it know that this waits."""
    WAITING.touch()
    while not GO.exists():
        time.sleep(0.01)
    RETURNED.touch()


class Stubborn:
    """A service that adds each word to the row of its key, and gets stuck where the word says so."""

    def __init__(self, name: str) -> None:
        self.source = Topic(f"{name}-in", "words", strict=True)
        self.table: Table[str, Seen] = Table(f"{name}-seen", Seen)
        self.service = Service(name, tables=(self.table,), types=(Ask,))
        adding = self.service.agent(f"{name}-add", self.source, help="Add up the words.")
        adding.on(Ask)(self._handle)
        adding.call(self._prepare)
        self.service.timers[f"{name}-ring"] = self._ring
        self._timer = f"{name}-ring"

    def _prepare(self, client: None, message: Envelope[Ask], work: UnitOfWork) -> Coroutine[Any, Any, None] | None:
        if message.payload.word == "prepare":
            never_return()
        return self._call() if message.payload.word == "call" else None

    async def _call(self) -> None:
        never_return()

    def _handle(self, message: Envelope[Ask], work: UnitOfWork) -> None:
        word = message.payload.word
        seen = work.get(self.table, KEY) or Seen()
        work.put(self.table, KEY, Seen((*seen.values, word)))
        if word.startswith("stuck"):
            never_return()
        if word == "wait":
            wait_for_go()
        if word == "timer":
            work.schedule(self._timer, KEY, work.record.timestamp_ms)

    def _ring(self, timer: Timer, work: UnitOfWork) -> None:
        work.put(self.table, KEY, Seen(("lost",)))
        never_return()

    async def write(self, app: EngineApp, words: tuple[str, ...]) -> None:
        """Write the words as one batch."""
        bad = [word for word in words if word.startswith(("stuck", "prepare", "call"))]
        keys = dict(zip(bad, keys_beside(app, KEY, len(bad)), strict=True))  # what is behind them would wait
        about: dict[str, Any] = {"timestamp": TEN_O_CLOCK, "metadata": Metadata()}
        keyed = [(keys.get(word, KEY), word) for word in words]
        records = [
            (key, encode_envelope(new_envelope(Ask(word), event_id=word, aggregate_id=key, **about)).decode())
            for key, word in keyed
        ]
        await publish_keyed(app, self.source, *records)


def main() -> None:
    """Run the worker until it is stuck or told to stop."""
    settings = load_settings()
    configure_logging(settings)
    stubborn = Stubborn(os.environ["STUCK_NAME"])
    words = WORDS.get(os.environ.get("STUCK_WRITES", ""), ())

    async def live() -> int:
        app = create_app(settings, services=[stubborn.service])
        return await serve(app, once_ready=(lambda: stubborn.write(app, words)) if words else None)

    raise SystemExit(run_in_loop(live()))


if __name__ == "__main__":
    main()
