"""The command `contracts`: have commands and events changed so that others would break?"""

from __future__ import annotations

from pathlib import Path

import click

from engine.cli.console import Failure, example
from engine.cli.program import Command, program

SNAPSHOT = Path("docs/contracts/events.json")


@click.command(cls=Command, epilog=example("$program contracts", "$program contracts --write"))
@click.option("--write", is_flag=True, help="write the contracts of the code into the file")
@click.option("--even-if-it-breaks", is_flag=True, help="write also what would break others")
@click.argument("file", type=click.Path(path_type=Path, dir_okay=False), default=SNAPSHOT)
def contracts(file: Path, write: bool, even_if_it_breaks: bool) -> None:
    """Hold the code's commands and events against a snapshot, by default docs/contracts/events.json.

    Exits with 1 when something has changed that others rely on, or when the snapshot is not up to date. No worker is
    needed.
    """
    # Faust takes half a second to import, which other commands need not wait for.
    from engine.contracts import snapshot
    from engine.contracts.events import event_contracts

    of = program()
    engine = of.create(of.settings(_env_file=None, broker="memory://")).engine
    now, reads = event_contracts(engine.registry, tuple(engine.topics.values())), engine.registry.reads
    before = snapshot.read(file)
    found = snapshot.compare(before, now, reads)
    if found.breaks and not (write and even_if_it_breaks):
        raise Failure("\n".join([*found.breaks, *ADVICE]))
    if write:
        snapshot.write(file, snapshot.renew(before, now, reads))
        click.echo(f"{file}: {len(now)} contracts")
    elif found.differs:
        raise Failure(
            f"{file} is not up to date, though nothing breaks: run {of.settings.application.name} contracts --write"
        )
    else:
        click.echo("Nothing has changed.")


ADVICE = (
    "Others rely on this. Give the type a new schema_version and register an upcaster from the old one "
    "(EventRegistry.upcaster), or take the change back; integration events have no versions: publish another type.",
)
