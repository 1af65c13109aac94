"""How late the event loop is: everything of a worker shares it, heartbeats to Kafka and HTTP included."""

from __future__ import annotations

import asyncio

from engine.observe.metrics import Distribution

LOOK_EVERY_S = 0.1


class LoopDelay:
    """Asks the loop to call it ten times a second, and notes by how much it is late."""

    def __init__(self, delays: Distribution) -> None:
        self._delays = delays
        self._due_at = 0.0
        self._handle: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin, in the running loop; a second call changes nothing."""
        if self._handle is None:
            self._plan(asyncio.get_running_loop())

    def stop(self) -> None:
        """Look no more."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due_at = loop.time() + LOOK_EVERY_S
        self._handle = loop.call_at(self._due_at, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        # uvloop's clock stands still between two turns of the loop, and its timers may be early by a millisecond.
        self._delays.observe(max(0.0, loop.time() - self._due_at))
        self._plan(loop)
