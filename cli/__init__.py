"""The command line `orders`: the commands that every application has, and a module for each group of the shop's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.audit import audit
from cli.importing import import_file
from cli.place import place
from cli.run import run
from engine.cli import Application, command_line
from streams.settings import Settings

if TYPE_CHECKING:
    from engine import EngineApp
    from engine import Settings as EngineSettings


def _create(settings: EngineSettings) -> EngineApp:
    # Faust takes half a second to import, which most commands need not wait for.
    from streams.app import create_app

    assert isinstance(settings, Settings)
    return create_app(settings)


main = command_line(
    Application("orders", Settings, _create),
    "Orders: an order-processing system built of events, with or without Kafka.",
    (run, import_file, place, audit),
)
