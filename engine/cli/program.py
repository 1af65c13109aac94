"""The program that a command belongs to: its command line is made here, and its names are put into texts of help."""

from __future__ import annotations

import copy
from collections.abc import Callable
from string import Template
from typing import TYPE_CHECKING, NamedTuple

import click

from engine.declare.settings import Settings

if TYPE_CHECKING:
    from engine.faust.app import EngineApp


class Program(NamedTuple):
    """What the commands need to know of an application: its settings, how it is made, the topic that `tail` prints."""

    settings: type[Settings]
    create: Callable[[Settings], EngineApp]
    topic: str = ""


def program() -> Program:
    """The program of the command that runs; its group has it in click's context."""
    return _program_of(click.get_current_context())


def in_words(line: str) -> str:
    """A line of the program that runs, as it stands in a sentence: `sensors doctor` in backticks for `doctor`."""
    return program().settings.application.command(line)


def _program_of(context: click.Context) -> Program:
    found = context.find_object(Program)
    assert found is not None, "the group of this command has no Program"
    return found


def _filled(text: str | None, context: click.Context) -> str | None:
    found = _program_of(context)
    application = found.settings.application
    names = {name: found.settings.variable(name) for name in found.settings.model_fields}
    default = f" (by default {found.topic})" if found.topic else ""
    return text and Template(text).substitute(
        names, program=application.name, module=application.module, topic_default=default
    )


class Command(click.Command):
    """A command of every application: its help says `$program` for its name, `$web_port` for a variable."""

    def format_help(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the help with the names of the application."""
        shown = copy.copy(self)
        shown.help, shown.epilog = _filled(self.help, context), _filled(self.epilog, context)
        super(Command, shown).format_help(context, formatter)

    def get_short_help_str(self, limit: int = 45) -> str:
        """The beginning of the help, for a list of commands."""
        shown = copy.copy(self)
        shown.help = _filled(self.help, click.get_current_context())
        return super(Command, shown).get_short_help_str(limit)


class Group(Command, click.Group):
    """A command with commands of its own; see Command."""

    command_class = Command


class SettingOption(click.Option):
    """An option that stands for a setting; its help ends with the environment variable."""

    def get_help_record(self, context: click.Context) -> tuple[str, str] | None:
        """The option, and its help with the variable."""
        shown = copy.copy(self)
        assert self.name is not None
        shown.help = f"{self.help or ''} ({_program_of(context).settings.variable(self.name)})".lstrip()
        return super(SettingOption, shown).get_help_record(context)
