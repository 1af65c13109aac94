"""The command line of an application: the commands that every application has, and its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import click

from engine.cli.accept_loss import accept_loss
from engine.cli.adopt import adopt
from engine.cli.contracts import contracts
from engine.cli.doctor import doctor
from engine.cli.letters.commands import dead_letters
from engine.cli.log import log
from engine.cli.program import Group, Program
from engine.cli.rebuild import rebuild
from engine.cli.repair import repair
from engine.cli.topics import tail, topics
from engine.cli.worker import worker

COMMANDS: Final = (
    worker,
    tail,
    topics,
    dead_letters,
    rebuild,
    repair,
    doctor,
    log,
    accept_loss,
    adopt,
    contracts,
)


def command_line(program: Program, help: str, own: Iterable[click.Command] = ()) -> click.Group:
    """The command of an application with the commands that every application has, and those that are its `own`."""
    group = Group(
        program.settings.application.name,
        help=help,
        epilog="Settings come from the environment ($broker, $data_dir, $web_port, ...) or a .env file.",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "obj": program},
    )
    for command in (*COMMANDS, *own):
        group.add_command(command)
    return group
