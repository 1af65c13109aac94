"""The command line `orders`: one module for each group of commands."""

import click

from agents.cli.accept_loss import accept_loss
from agents.cli.adopt import adopt
from agents.cli.audit import audit
from agents.cli.contracts import contracts
from agents.cli.dead_letters import dead_letters
from agents.cli.doctor import doctor
from agents.cli.importing import import_file
from agents.cli.log import log
from agents.cli.place import place
from agents.cli.rebuild import rebuild
from agents.cli.repair import repair
from agents.cli.run import run
from agents.cli.topics import tail, topics
from agents.cli.worker import worker


@click.group(
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Settings come from the environment (ORDERS_BROKER, ORDERS_DATA_DIR, ORDERS_WEB_PORT, ...) or a .env file.",
)
def main() -> None:
    """Orders: an order-processing system built of events, with or without Kafka."""


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
