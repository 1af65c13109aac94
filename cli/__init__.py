"""The command line `orders`: one module for each group of commands."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from engine.cli.application import Application
from engine.declare.settings import Settings as EngineSettings
from streams.settings import Settings

if TYPE_CHECKING:
    from engine.faust.app import EngineApp

from cli.audit import audit
from cli.importing import import_file
from cli.place import place
from cli.run import run
from engine.cli.accept_loss import accept_loss
from engine.cli.adopt import adopt
from engine.cli.contracts import contracts
from engine.cli.dead_letters import dead_letters
from engine.cli.doctor import doctor
from engine.cli.log import log
from engine.cli.rebuild import rebuild
from engine.cli.repair import repair
from engine.cli.topics import tail, topics
from engine.cli.worker import worker


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Settings come from the environment (ORDERS_BROKER, ORDERS_DATA_DIR, ORDERS_WEB_PORT, ...) or a .env file.",
)
@click.pass_context
def main(context: click.Context) -> None:
    """Orders: an order-processing system built of events, with or without Kafka."""
    context.obj = Application("orders", Settings, _create)


def _create(settings: EngineSettings) -> EngineApp:
    # Faust takes half a second to import, which most commands need not wait for.
    from streams.app import create_app

    assert isinstance(settings, Settings)
    return create_app(settings)


for command in (
    worker,
    run,
    import_file,
    place,
    tail,
    topics,
    dead_letters,
    rebuild,
    repair,
    audit,
    doctor,
    log,
    accept_loss,
    adopt,
    contracts,
):
    main.add_command(command)
