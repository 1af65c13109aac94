"""The command `adopt`: make this installation the owner of a log or cluster that another one owned."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from engine.cli.console import Failure, echo, example, quiet_logging, run_until_interrupted, settings_from
from engine.cli.program import Command, in_words, program
from engine.cli.records import open_broker
from engine.declare.settings import Settings

if TYPE_CHECKING:
    from engine.installation.mark import Mark

REASON_CHARACTERS_MAX = 500


@click.command(
    cls=Command,
    epilog=example(
        '$program adopt --reason "cluster restored from the snapshot of 3 May"',
        '$data_dir=/srv/data $program adopt --reason "moved to a new machine"',
    ),
)
@click.option("--reason", required=True, help="why; it is kept with the mark, with the time and your name")
@click.option("--even-if-alive", is_flag=True, help="go on although workers of the present owner run: they are fenced")
def adopt(reason: str, even_if_alive: bool) -> None:
    """Make this installation the owner of a log or cluster that another one owned.

    A worker is refused on a log of another installation than its stores are of. This command writes into the log's
    topic `installation` that the installation of $data_dir (a new one, where there are no stores yet) owns the
    topics from now on: who did it, when and why. Workers of the owner before end, and nothing counts that they commit
    afterwards. All workers of this machine have to be stopped.

    Under another $app_id it is refused while there are records that this application would process again.
    Exits with 1 when nothing was changed.
    """
    quiet_logging()
    if not reason.strip() or len(reason) > REASON_CHARACTERS_MAX:
        raise Failure(f"--reason needs 1 to {REASON_CHARACTERS_MAX} characters")
    settings = settings_from()
    if settings.transport == "memory":
        raise Failure(f"memory:// keeps nothing that could be adopted; set {settings.variable('broker')}")
    if settings.transport == "embedded" and not (settings.data_dir / "log").is_dir():
        correct = f"correct {settings.variable('data_dir')}"
        raise Failure(f"there is no log in {settings.data_dir.absolute()}; {correct}")
    done = run_until_interrupted(_adopt(settings, reason.strip(), even_if_alive))
    if done is None:
        raise Failure(f"interrupted; {in_words('doctor')} says who owns the topics now")
    mark, has_changed = done
    echo(f"{'The owner is' if has_changed else 'Nothing to do: the owner is'} {mark.owner} since {mark.since}.")
    if has_changed:
        app_id, data_dir = settings.variable("app_id"), settings.variable("data_dir")
        echo(f"Start workers with {app_id}={mark.app_id} and this {data_dir}, or an empty one.")


async def _adopt(settings: Settings, reason: str, even_if_alive: bool) -> tuple[Mark, bool]:
    # aiokafka and Faust take half a second to import, which other commands need not wait for.
    from engine.installation.adopting import Adoption

    engine = program().create(settings).engine
    async with open_broker(settings) as broker:
        ownership = engine.ownership.of(broker)
        agents = {agent: topic.name for agent, topic in engine.agents.items()}
        try:
            return await Adoption(ownership, broker, agents).adopt(reason, even_if_alive=even_if_alive)
        finally:
            await ownership.stop()
