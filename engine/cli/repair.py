"""The command `repair`: make changelogs whole again that have less than the store of their partition."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import Collection, Mapping
from itertools import count
from typing import Any, Final

import click

from engine.cli.client import Refused, WorkerClient, client_for, path_of
from engine.cli.console import Failure, echo, example, run_until_interrupted, settings_from, steps
from engine.cli.program import Command
from engine.cli.rebuild import begin_rebuild, text_of, watch

POLL_S: Final = 0.2


@click.command(
    cls=Command,
    epilog=example(
        "$program repair 2 --from store --reason 'retention was set on the changelogs by mistake'",
        "$program repair --all --from store",
    ),
)
@click.argument("partition", type=click.IntRange(min=0), required=False)
@click.option("--all", "every", is_flag=True, help="every partition that needs it")
@click.option(
    "--from",
    "source",
    type=click.Choice(["store", "changelog", "events"]),
    required=True,
    help="what has the rows: the worker's store, what the changelog has left, or the events",
)
@click.option("--accept-loss", is_flag=True, help="also where records were removed that the store does not have")
@click.option("--reason", default="", help="why; it is kept")
@click.option("--by", help="who asks for it; by default the user of this computer")
@click.option("--url", help="the worker's address; by default what the settings say")
def repair(
    partition: int | None, every: bool, source: str, accept_loss: bool, reason: str, by: str | None, url: str | None
) -> None:
    """Make the changelogs of PARTITION whole again. `$program doctor` says which partitions need it.

    --from store writes every row of the store to the changelogs that have less: nothing is lost. --from changelog goes
    on with the rows that the changelogs have (when an older log was put back on purpose), and moves the store aside.
    --from events does so for projections and then rebuilds them. What would lose rows that no events make anew, or
    the agents' positions, is refused. The worker runs meanwhile; the partition stands still. Who asked for it, when
    and why is kept in the table repairs.
    """
    if (partition is None) is not every:
        raise click.UsageError("give either a partition or --all")
    asked: dict[str, str | bool] = {"from": source, "reason": reason, "by": by or _user(), "accept_loss": accept_loss}
    if run_until_interrupted(_repair(partition, asked, url)) is None:
        raise Failure("interrupted: a repair that has begun goes on; the worker's log says how it ends")


def _user() -> str:
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # a container may run as a number without a name
        return "the command line"


async def _repair(partition: int | None, asked: Mapping[str, str | bool], url: str | None) -> bool:
    tables: set[str] = set()
    async with client_for(settings_from(), url) as client:
        for number in count() if partition is None else (partition,):
            try:
                tables.update(await _repair_one(client, number, asked))
            except Refused as refused:
                if partition is None and refused.status == 404:
                    break
                if partition is not None or refused.problem.get("reason") != "nothing_to_repair":
                    raise
                echo(f"partition {number}: nothing to repair")
        if asked["from"] == "events":
            await _rebuild(client, tables)
    return True


async def _repair_one(client: WorkerClient, number: int, asked: Mapping[str, str | bool]) -> Collection[str]:
    """Repair one partition, and say what was done; the tables that were repaired."""
    path = path_of("partitions", str(number), "repair")
    _, found = await client.post(path, asked)
    while found["state"] in ("asked", "running"):
        await asyncio.sleep(POLL_S)
        found = await client.get(path)
    if found["state"] == "refused":
        raise Failure(f"partition {number} was not repaired: {found['detail']}")
    echo(f"partition {number}: {_text_of(found)}")
    return found["tables"]  # type: ignore[no-any-return]


def _text_of(found: Mapping[str, Any]) -> str:
    count_of = len(found["changelogs"])
    what = "1 changelog is whole again" if count_of == 1 else f"{count_of} changelogs are whole again"
    if found["source"] == "store":
        gone = f", {found['removed']:,} that the store has not were removed" if found["removed"] else ""
        return f"{what}: {found['rows']:,} rows written{gone}"
    aside = f"; the store is in {found['aside']} now" if found["aside"] else ""
    return f"{what}, with the rows that they have{aside}"


async def _rebuild(client: WorkerClient, tables: Collection[str]) -> None:
    """Make projections anew; tables that one agent makes are rebuilt together."""
    done: set[str] = set()
    with steps() as progress:
        for table in sorted(tables):
            if table not in done:
                path = path_of("tables", table, "rebuild")
                await begin_rebuild(client, path, table, check=False)
                view = await watch(client, path, progress)
                done.update(view["tables"])
                echo(text_of(view))
