"""The application that a command line belongs to."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

import click

from engine.declare.settings import Settings

if TYPE_CHECKING:
    from engine.faust.app import EngineApp


class Application(NamedTuple):
    """What the commands need to know of an application: the name of its command, its settings, how it is made."""

    name: str
    settings: type[Settings]
    create: Callable[[Settings], EngineApp]


def application() -> Application:
    """The application of the command that runs; its group puts it into click's context."""
    found = click.get_current_context().find_object(Application)
    assert found is not None, "the group of this command has no Application"
    return found
