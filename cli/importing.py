"""`orders import`: order history from a file into a running worker."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import click

from cli.history import HistoryImport
from cli.order_history import ImportFileError, OrderHistory, read_order_history
from cli.report import ImportReport
from cli.sums import reconcile
from engine.cli import (
    Failure,
    Steps,
    WorkerClient,
    client_for,
    echo,
    example,
    run_until_interrupted,
    settings_from,
    steps,
)


@click.command("import", epilog=example("orders import examples/online-retail-sample.csv.gz"))
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--url", help="the worker's address; by default what the settings say")
def import_file(file: Path, url: str | None) -> None:
    """Bring order history from FILE (CSV, plain or gzipped) into a running worker.

    Puts on the shelf what the orders ask for, places them, waits for their sagas, and prints what was confirmed,
    cancelled and rejected, and why, and whether pieces and money add up. Importing the same file again changes nothing.
    Exits with 1 when something that the file asks for could not be done, or when it does not add up.
    """
    report = run_until_interrupted(_import(file, url))
    if report is None:
        raise Failure("interrupted: the orders that were sent stay; the same command again brings the rest")
    echo(report.text())
    if not report.is_complete():
        raise SystemExit(1)


async def _import(file: Path, url: str | None) -> ImportReport:
    async with client_for(settings_from(), url) as client:
        with steps() as progress:
            report, _ = await stream_history(client, file, progress)
    return report


async def stream_history(client: WorkerClient, file: Path, progress: Steps) -> tuple[ImportReport, OrderHistory]:
    """Read a file and send it to a worker; what became of it, and what the file says. Raises Failure."""
    began = time.monotonic()
    progress.step("reading the file")
    await client.get("/readyz")
    try:
        history = await asyncio.to_thread(read_order_history, file)
    except ImportFileError as error:
        raise Failure(str(error)) from error
    outcome = await HistoryImport(client, history, progress).run()
    progress.step("adding up")
    sums = await reconcile(client)
    return ImportReport(str(file), history.summary(), outcome, sums, time.monotonic() - began), history
