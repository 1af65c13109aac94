"""The command line `orders`: the commands of every application, and one module for each group of the shop's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cli.audit import audit
from cli.importing import import_file
from cli.place import place
from cli.run import run
from engine.cli import Program, command_line
from streams.settings import Settings
from streams.topics import ORDER_EVENTS

if TYPE_CHECKING:
    from engine import EngineApp
    from engine import Settings as EngineSettings


def _create(settings: EngineSettings) -> EngineApp:
    # Faust takes half a second to import, which most commands need not wait for.
    from streams.app import create_app

    assert isinstance(settings, Settings)
    return create_app(settings)


main = command_line(
    Program(Settings, _create, topic=ORDER_EVENTS.name),
    "Orders: an order-processing system built of events, with or without Kafka.",
    (run, import_file, place, audit),
)
