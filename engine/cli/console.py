"""What the commands share: settings, readable failures, examples in help, and progress on a terminal or in a log."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Callable, Collection, Coroutine, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import click
import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

from engine.cli.program import program
from engine.declare.settings import Settings, SettingsError, load_settings
from engine.observe.plain_text import plain, plain_line

T = TypeVar("T")
PLAIN_INTERVAL_S = 5.0


class Failure(click.ClickException):
    """A command that cannot do what it was asked for; the message says why and what to do. Exit status 1."""

    def format_message(self) -> str:
        """The message, in which there may be data."""
        return plain(super().format_message())


def echo(text: str = "", err: bool = False) -> None:
    """Print what may have data in it, which the terminal does not obey."""
    click.echo(plain(text), err=err)


def echo_json(value: Any) -> None:
    """Print JSON for people and programs."""
    echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def example(*lines: str) -> str:
    """An epilog of `--help` that keeps its lines."""
    return "\b\nExample" + ("s" if len(lines) > 1 else "") + ":\n" + "\n".join(f"  {line}" for line in lines)


def settings_from(**overrides: Any) -> Settings:
    """Settings of the environment, with options that were given in their place; raises Failure."""
    try:
        return load_settings(program().settings, **overrides)
    except SettingsError as error:
        lines = "".join(f"\n  {line}" for line in str(error).splitlines())
        raise Failure(f"settings that cannot be used:{lines}") from error


def quiet_logging() -> None:
    """Let only this command speak: what libraries log about a broker that is away is said by its failure."""
    logging.disable(logging.CRITICAL)


def run_until_interrupted(main: Coroutine[Any, Any, T]) -> T | None:
    """Run a coroutine; None when Ctrl-C ended it."""
    try:
        return asyncio.run(main)
    except KeyboardInterrupt:
        return None


def columns(lines: Sequence[Sequence[str]], right: Collection[int] = ()) -> list[str]:
    """Lines whose cells stand below each other, two spaces apart; those of the columns `right` end there."""
    lines = [[plain_line(cell) for cell in line] for line in lines]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return [
        "  ".join(
            cell.rjust(width) if column in right else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    ]


class Steps(AbstractContextManager["Steps"], Protocol):
    """Shows how far a long command is: one step after the other."""

    def step(self, text: str, total: int | None = None) -> None:
        """Begin a step of `total` parts, or of unknown length."""

    def advance(self, count: int = 1) -> None:
        """Parts of the present step are done."""

    def note(self, text: str, total: int) -> None:
        """Say something about the present step, in place of what was said before, and of how many parts it is now."""


def steps() -> Steps:
    """A progress bar on a terminal, plain lines elsewhere; both on stderr, stdout is for results."""
    return TerminalSteps() if sys.stderr.isatty() else PlainSteps(lambda text: click.echo(text, err=True))


class TerminalSteps(Steps):
    """A progress bar for each step."""

    def __init__(self) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.description:<24}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._task: TaskID | None = None

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._finish()
        self._progress.stop()

    def step(self, text: str, total: int | None = None) -> None:
        """Begin a step."""
        self._finish()
        self._task = self._progress.add_task(text, total=total, note="")

    def advance(self, count: int = 1) -> None:
        """Move the bar."""
        if self._task is not None:
            self._progress.advance(self._task, count)

    def note(self, text: str, total: int) -> None:
        """Say it behind the bar."""
        if self._task is not None:
            self._progress.update(self._task, note=text, total=total)

    def _finish(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[self._task]
            total = task.total if task.total is not None else task.completed or 1
            self._progress.update(self._task, total=total, completed=total)


class PlainSteps(Steps):
    """A line for each step, and one every few seconds while it lasts."""

    def __init__(self, write: Callable[[str], None], interval_s: float = PLAIN_INTERVAL_S) -> None:
        self._write = write
        self._interval_s = interval_s
        self._text = ""
        self._total: int | None = None
        self._done = 0
        self._note = ""
        self._written_at = 0.0

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def step(self, text: str, total: int | None = None) -> None:
        """Write what begins."""
        self._text, self._total, self._done, self._written_at = text, total, 0, time.monotonic()
        self._write(f"{text} ..." if total is None else f"{text} ({total:,}) ...")

    def advance(self, count: int = 1) -> None:
        """Write how far it is, not too often."""
        self._done += count
        if time.monotonic() - self._written_at >= self._interval_s:
            self._written_at = time.monotonic()
            said = f" of {self._total:,}" if self._total is not None else ""
            self._write(f"{self._text}: {self._done:,}{said}{self._note and f', {self._note}'}")

    def note(self, text: str, total: int) -> None:
        """Write it with the next line."""
        self._note, self._total = text, total
