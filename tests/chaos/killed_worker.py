"""A worker that kills itself at a step of a commit: `python -m tests.chaos.killed_worker`.

KILL_STEP names the probe ("before 2", "after 5", ...); KILL_COMMIT says at which of its commits with records, counted
from 1 over all partitions after the file KILL_WHEN has come to be.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

from streams.app import create_app
from streams.settings import load_settings
from streams.worker import configure_logging, run_in_loop, serve


def killer(step: str, commit: int, armed: Path) -> Callable[[str], None]:
    """A probe that ends this process as `kill -9` does."""
    left = commit

    def probe(reached: str) -> None:
        nonlocal left
        if reached == step and armed.exists():
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    return probe


def main() -> None:
    """Run the worker until it kills itself."""
    settings = load_settings()
    configure_logging(settings.log_level)
    probe = killer(os.environ["KILL_STEP"], int(os.environ["KILL_COMMIT"]), Path(os.environ["KILL_WHEN"]))

    async def live() -> int:
        app = create_app(settings)
        app.engine.probe = probe
        return await serve(app)

    raise SystemExit(run_in_loop(live()))


if __name__ == "__main__":
    main()
