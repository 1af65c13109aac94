"""The command `worker`: one worker process."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from engine.cli.console import example, settings_from
from engine.cli.program import Command, SettingOption, program


def worker_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Options of the commands that start a worker; each stands for a setting and wins over it."""
    options = (
        click.option("--broker", cls=SettingOption, help="embedded://, memory:// or kafka://host:9092[,host...]"),
        click.option(
            "--data-dir", cls=SettingOption, type=click.Path(path_type=Path), help="RocksDB and the embedded log"
        ),
        click.option("--web-host", cls=SettingOption, help="address of the web view"),
        click.option("--web-port", cls=SettingOption, type=click.IntRange(1, 65535), help="port of the web view"),
        click.option(
            "--log-level",
            cls=SettingOption,
            type=click.Choice(["DEBUG", "INFO", "WARNING", "ERROR"], case_sensitive=False),
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command(
    cls=Command, epilog=example("$program worker", "$program worker --broker kafka://localhost:9092 --web-port 6067")
)
@worker_options
def worker(**options: Any) -> None:
    """Run one worker: all agents, all tables and the web view, until SIGTERM or Ctrl-C.

    The same as `faust -A $module worker`. Exits with 1 when it cannot go on, and says why.
    """
    settings = settings_from(**options)
    # Faust takes half a second to import, which other commands need not wait for.
    from engine.faust.worker import run_in_loop, serve
    from engine.observe.logs import configure_logging

    configure_logging(settings)

    async def main() -> int:
        return await serve(program().create(settings))

    raise SystemExit(run_in_loop(main()))
