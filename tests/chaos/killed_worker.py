"""A worker that kills or freezes itself at a step of a commit: `python -m tests.chaos.killed_worker`.

KILL_STEP names the probe ("before 2", "after 5", ...), KILL_SIGNAL what it sends itself there (SIGKILL, SIGSTOP),
KILL_COMMIT says at which commit, counted from 1 over all partitions after the file KILL_WHEN has come to be.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from engine.faust.worker import run_in_loop, serve
from engine.observe.logs import configure_logging
from streams.app import create_app
from streams.settings import load_settings


def killer(step: str, sent: signal.Signals, commit: int, armed: Path) -> Callable[[str], None]:
    """A probe that sends this process a signal once."""
    left = commit

    def probe(reached: str) -> None:
        nonlocal left
        if reached == step and armed.exists():
            left -= 1
            if left == 0:
                os.kill(os.getpid(), sent)

    return probe


def main() -> None:
    """Run the worker until it kills itself."""
    settings = load_settings()
    configure_logging(settings)
    step, sent = os.environ["KILL_STEP"], signal.Signals[os.environ["KILL_SIGNAL"]]
    probe = killer(step, sent, int(os.environ["KILL_COMMIT"]), Path(os.environ["KILL_WHEN"]))

    async def live() -> int:
        app = create_app(settings)
        app.engine.probe = probe
        return await serve(app)

    raise SystemExit(run_in_loop(live()))


if __name__ == "__main__":
    main()
