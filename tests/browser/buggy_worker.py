"""A worker with a bug until it is mended: `python -m tests.browser.buggy_worker`.

Cancelling an order for the reason BUG fails for good, as long as there is no file `mended` in the folder it runs in.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from agents import orders
from engine.declare.envelope import Envelope
from engine.declare.errors import NotRetryable
from engine.declare.unit_of_work import UnitOfWork
from engine.faust.worker import run_in_loop, serve
from engine.observe.logs import configure_logging
from streams.app import create_app
from streams.events.orders import CancelOrder
from streams.settings import load_settings

BUG = "<img src=x onerror=alert('error')>"
MENDED = "mended"


class Bug(NotRetryable):
    """A handler failed as it always will."""


def main() -> None:
    """Run the worker until it is killed or told to stop."""
    settings = load_settings()
    configure_logging(settings)
    cancel = orders.commands.handlers[CancelOrder]

    def handle(command: Envelope[Any], work: UnitOfWork) -> None:
        if command.payload.reason == BUG and not Path(MENDED).exists():
            raise Bug(BUG)
        cancel(command, work)

    orders.commands.handlers[CancelOrder] = handle
    raise SystemExit(run_in_loop(serve(create_app(settings))))


if __name__ == "__main__":
    main()
