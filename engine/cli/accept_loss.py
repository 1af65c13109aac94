"""The command `accept-loss`: let agents go on behind records that a topic no longer has."""

from __future__ import annotations

import getpass

import click

from engine.cli.client import client_for, path_of
from engine.cli.console import echo, example, run_until_interrupted, settings_from
from engine.cli.program import Command
from engine.declare.settings import Settings


@click.command(
    cls=Command,
    name="accept-loss",
    epilog=example("$program accept-loss TOPIC 2 --reason 'the senders were asked to send again'"),
)
@click.argument("topic")
@click.argument("partition", type=click.IntRange(min=0))
@click.option("--reason", required=True, help="why nothing better can be done; it is kept")
@click.option("--by", help="who accepts it; by default the user of this computer")
@click.option("--url", help="the worker's address; by default what the settings say")
def accept_loss(topic: str, partition: int, reason: str, by: str | None, url: str | None) -> None:
    """Let the agents of PARTITION of TOPIC go on behind records that are gone.

    `$program doctor` names what is missing. Ask whoever produced it for it first: what is accepted is not looked for
    any more. Who accepted it, when and why is kept in the table accepted-losses.
    """
    run_until_interrupted(_accept_loss(settings_from(), url, topic, partition, reason, by or _user()))


async def _accept_loss(settings: Settings, url: str | None, topic: str, partition: int, reason: str, by: str) -> None:
    async with client_for(settings, url) as client:
        path = path_of("topics", topic, "partitions", str(partition), "accept-loss")
        _, answer = await client.post(path, {"reason": reason, "by": by})
    for accepted in answer["items"]:
        loss = accepted["loss"]
        echo(f"{loss['agent']} goes on at offset {loss['goes_on_at']} of {topic}/{partition}")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number without a name
        return "the command line"
