"""`orders worker`: one worker process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from engine.cli.application import application
from engine.cli.console import example, settings_from


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the commands that start a worker; each stands for a setting and wins over it."""
    options = (
        click.option("--broker", help="embedded://, memory:// or kafka://host:9092[,host...] (ORDERS_BROKER)"),
        click.option(
            "--data-dir", type=click.Path(path_type=Path), help="RocksDB and the embedded log (ORDERS_DATA_DIR)"
        ),
        click.option("--web-host", help="address of the web view (ORDERS_WEB_HOST)"),
        click.option("--web-port", type=click.IntRange(1, 65535), help="port of the web view (ORDERS_WEB_PORT)"),
        click.option(
            "--log-level",
            type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
            help="(ORDERS_LOG_LEVEL)",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(epilog=example("orders worker", "orders worker --broker kafka://localhost:9092 --web-port 6067"))
@worker_options
def worker(**options: Any) -> None:
    """Run one worker: all agents, all tables and the web view, until SIGTERM or Ctrl-C.

    The same as `faust -A streams.app worker`. Exits with 1 when it cannot go on, and says why.
    """
    settings = settings_from(**options)
    # Faust takes half a second to import, which other commands need not wait for.
    from engine.faust.worker import run_in_loop, serve
    from engine.observe.logs import configure_logging

    configure_logging(settings)

    async def main() -> int:
        return await serve(application().create(settings))

    raise SystemExit(run_in_loop(main()))
