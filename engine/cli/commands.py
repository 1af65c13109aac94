"""The commands that every application has, and the command line that an application makes of them and of its own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import click

from engine.cli.accept_loss import accept_loss
from engine.cli.adopt import adopt
from engine.cli.application import Application
from engine.cli.contracts import contracts
from engine.cli.dead_letters import dead_letters
from engine.cli.doctor import doctor
from engine.cli.log import log
from engine.cli.rebuild import rebuild
from engine.cli.repair import repair
from engine.cli.topics import tail, topics
from engine.cli.worker import worker

COMMANDS: Final[tuple[click.Command, ...]] = (
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


def command_line(application: Application, help: str, commands: Iterable[click.Command] = ()) -> click.Group:
    """Make the command line of an application: the commands that every application has, and `commands` of its own."""
    prefix = application.settings.variable("")
    group = click.Group(
        application.name,
        help=help,
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110, "obj": application},
        epilog=f"Settings come from the environment ({prefix}BROKER, {prefix}DATA_DIR, {prefix}WEB_PORT, ...) "
        "or a .env file.",
    )
    for command in (*COMMANDS, *commands):
        group.add_command(command)
    return group
