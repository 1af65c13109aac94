"""`orders run`: one worker with the bundled order history, for a first look."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import click

from agents.cli.client import client_for, path_of
from agents.cli.console import Failure, example, settings_from, steps
from agents.cli.importing import stream_history
from agents.cli.worker import worker_options
from agents.domain.order_history import Cancellation, OrderHistory, Placement
from streams.settings import Settings

SAMPLE = Path(__file__).resolve().parents[2] / "examples" / "online-retail-sample.csv.gz"


@click.command(epilog=example("orders run", "orders run --data-dir /tmp/orders --web-port 8080"))
@worker_options
@click.option("--file", type=click.Path(path_type=Path), default=SAMPLE, help="another file of order history")
def run(file: Path, **options: Any) -> None:
    """Run one worker, stream the bundled real orders through it, and stay up until Ctrl-C.

    A second start finds the data of the first, and the orders in it.
    """
    options["log_level"] = options["log_level"] or "WARNING"  # the progress bar and the summary are what is to be seen
    settings = settings_from(**options)
    from streams.worker import configure_logging, run_in_loop

    configure_logging(settings.log_level)
    click.echo(f"Starting a worker on {settings.broker}" + _where(settings) + " ...", err=True)
    status = run_in_loop(_run(settings, file))
    if status == 0:
        kept = "" if settings.transport == "memory" else " The data is kept; the next start finds it."
        click.echo(f"Goodbye.{kept}", err=True)
    raise SystemExit(status)


def _where(settings: Settings) -> str:
    return f" in {settings.data_dir.absolute()}" if settings.transport == "embedded" else ""


async def _run(settings: Settings, file: Path) -> int:
    """A worker in this process, and the import in its loop: one process to start, to watch and to end."""
    from streams.app import create_app
    from streams.worker import serve

    stop = asyncio.Event()
    failures: list[click.ClickException] = []

    async def stream_sample() -> None:
        try:
            async with client_for(settings, None) as client:
                with steps() as progress:
                    report, history = await stream_history(client, file, progress)
        except Failure as failure:
            failures.append(failure)
            stop.set()
            return
        click.echo(f"\n{report.text()}\n\n{addresses(settings.local_url, history)}\n")
        click.echo("The worker stays up; Ctrl-C ends it.", err=True)

    status = await serve(create_app(settings), stop=stop, once_ready=stream_sample)
    for failure in failures:
        failure.show()
    return 1 if failures else status


def addresses(url: str, history: OrderHistory) -> str:
    """Addresses to look at, with an order and a customer that the file really has."""
    cancelled = [command.order_id for command in history.commands if isinstance(command, Cancellation)]
    placed = [command for command in history.commands if isinstance(command, Placement)]
    rows = []
    if cancelled:
        rows.append(("an order that was cancelled", path_of("orders", cancelled[-1])))
        rows.append(("everything that happened to it", path_of("orders", cancelled[-1], "events")))
    if placed:
        ((customer_id, _),) = Counter(placement.customer_id for placement in placed).most_common(1)
        rows.append(("the orders of a customer", path_of("customers", customer_id, "orders")))
    rows += [("all tables", "/tables"), ("the topics", "/topics"), ("figures for Prometheus", "/metrics")]
    return "Look at:\n" + "\n".join(f"  {text:<32}{url}{path}" for text, path in rows)
