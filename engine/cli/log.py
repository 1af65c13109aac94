"""The command `log`: is the embedded log whole, and going on with what is left of a damaged one."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from engine.cli.console import Failure, echo, example, settings_from
from engine.cli.program import Group, program

if TYPE_CHECKING:
    from engine.log.embedded.check import LogReport


@click.group(cls=Group, epilog=example("$program log check"))
def log() -> None:
    """Check and repair the embedded log of a worker that does not run."""


@log.command(epilog=example("$program log check"))
def check() -> None:
    """Read all of the log with its checksums and say what is missing or damaged.

    Changes nothing. Exits with 1 when something is wrong.
    """
    from engine.log.embedded.check import check_log
    from engine.log.embedded.errors import LogError

    try:
        report = check_log(_folder(), program().settings.application)
    except LogError as error:
        raise Failure(str(error)) from error
    for problem in report.problems:
        echo(f"PROBLEM  {problem}")
    echo(_readable(report))
    echo("The log is whole." if not report.problems else f"Problems: {len(report.problems)}.")
    if report.problems:
        raise SystemExit(1)


@log.command(epilog=example('$program log repair --reason "the disk was damaged, no backup"'))
@click.option("--reason", required=True, help="why; it is written down beside the log")
def repair(reason: str) -> None:
    """Go on with what can be read of a damaged log, and say what is lost.

    Restoring the data folder from a backup is better where there is one. What was done is written into a file beside
    the log. Exits with 1 when rows in the middle are damaged, which only a backup has.
    """
    from engine.log.embedded.check import repair_log, repairs_path
    from engine.log.embedded.errors import LogError

    folder = _folder()
    try:
        report, done = repair_log(folder, reason, program().settings.application)
    except LogError as error:
        raise Failure(str(error)) from error
    for line in done:
        echo(f"done     {line}")
    for problem in report.damaged:
        echo(f"PROBLEM  {problem}")
    echo(_readable(report))
    if done:
        echo(f"Written down in {repairs_path(folder)}.")
    if report.damaged:
        raise SystemExit(1)


def _folder() -> Path:
    settings = settings_from()
    if settings.transport != "embedded":
        broker, data_dir = settings.variable("broker"), settings.variable("data_dir")
        raise Failure(f"{settings.broker} is not an embedded log: set {broker} and {data_dir} to one")
    return settings.data_dir.absolute() / "log"


def _readable(report: LogReport) -> str:
    from engine.declare.times import format_ms

    newest = f", the newest of {format_ms(report.newest_ms)}" if report.newest_ms else ""
    return f"{report.records:,} records in {report.topics} topics can be read{newest}."
