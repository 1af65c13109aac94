"""The command `rebuild`: a projection made anew from its events, beside the running one."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import Any

import click
import msgspec

from engine.cli.client import Refused, WorkerClient, client_for, path_of
from engine.cli.console import Failure, Steps, example, run_until_interrupted, settings_from, steps
from engine.cli.program import Command, in_words

POLL_S = 0.2
ROW_CHARACTERS_MAX = 200


@click.command(
    cls=Command,
    epilog=example("$program rebuild TABLE --check", "$program rebuild TABLE", "$program rebuild TABLE --follow"),
)
@click.argument("table")
@click.option("--check", is_flag=True, help="show the differences, and leave the table as it is")
@click.option("--follow", is_flag=True, help="begin nothing: follow the rebuild that is under way")
@click.option("--cancel", is_flag=True, help="give the rebuild up that is under way")
@click.option("--json", "as_json", is_flag=True, help="print JSON, for programs")
@click.option("--url", help="the worker's address; by default what the settings say")
def rebuild(table: str, check: bool, follow: bool, cancel: bool, as_json: bool, url: str | None) -> None:
    """Make TABLE anew from the events, beside the running one, and replace the rows that differ.

    Reads go on all the time. Nothing else happens: no call to the outside, no event. It goes on when workers are killed
    or this command ends. Shows the rows that differ; exits with 1 when the rebuild fails or is given up.
    """
    if check + follow + cancel > 1:
        raise click.UsageError("--check, --follow and --cancel exclude each other")
    view = run_until_interrupted(_rebuild(table, check, follow, cancel, url))
    if view is None:
        raise Failure(f"interrupted: a rebuild that has begun goes on. {_ways_on(table)}")
    click.echo(msgspec.json.encode(view).decode() if as_json else text_of(view))
    if view["state"] != "done" and not cancel:
        raise SystemExit(1)


async def _rebuild(table: str, check: bool, follow: bool, cancel: bool, url: str | None) -> Mapping[str, Any]:
    path = path_of("tables", table, "rebuild")
    async with client_for(settings_from(), url) as client:
        if cancel:
            return await client.delete(path)  # type: ignore[no-any-return]
        if not follow:
            await begin_rebuild(client, path, table, check)
        with steps() as progress:
            return await watch(client, path, progress)


def _ways_on(table: str) -> str:
    follow, cancel = in_words(f"rebuild {table} --follow"), in_words(f"rebuild {table} --cancel")
    return f"{follow} shows how far it is, {cancel} gives it up"


async def begin_rebuild(client: WorkerClient, path: str, table: str, check: bool) -> None:
    """Begin a rebuild; raises Failure when one is under way."""
    try:
        await client.post(path, {"check": check})
    except Refused as refused:
        if refused.problem.get("reason") != "under_way":
            raise
        raise Failure(f"{table} is being rebuilt already: {_ways_on(table)}") from refused


async def watch(client: WorkerClient, path: str, progress: Steps) -> Mapping[str, Any]:
    """Show how far a rebuild is until it is over; returns it as it is then."""
    done = math.inf
    while True:
        view = await client.get(path)
        if view["records_done"] < done:  # it begins, or it begins anew
            done = 0
            progress.step(f"rebuilding {view['table']}", view["records_total"])
        progress.note(_speed(view), view["records_total"])
        progress.advance(view["records_done"] - int(done))
        done = view["records_done"]
        if view["state"] != "running":
            return view  # type: ignore[no-any-return]
        await asyncio.sleep(POLL_S)


def _speed(view: Mapping[str, Any]) -> str:
    """How fast it is, and how long it will take."""
    left = view["seconds_left"]
    phases = {part["phase"] for part in view["partitions"]} & {"comparing", "clearing"}
    if left is None:
        return ""
    if view["records_done"] >= view["records_total"]:
        return ", ".join(sorted(phases))
    return f"{view['records_per_second']:,.0f}/s, {math.ceil(left)} s left"


def text_of(view: Mapping[str, Any]) -> str:
    """What a rebuild has come to, for people."""
    found = view["differences"]
    changed = sum(found[name] for name in ("added", "changed", "removed"))
    lines = [f"{', '.join(view['tables'])}: {_outcome(view, changed)}"]
    lines += [f"  {error}" for error in view["errors"]]
    records = view["records"]
    lines.append(f"  records of {view['topic']}: {records['applied']:,} handled{_left_out(records)}")
    if view["restarts"]:
        lines.append(f"  begun anew {view['restarts']:,} times, as dead letters were decided about meanwhile")
    if changed:
        more = "at least " if found["are_more"] else ""
        lines.append(
            f"  rows that differ: {more}{changed:,} of {found['rows']:,} ({found['changed']:,} changed, "
            f"{found['added']:,} missing, {found['removed']:,} superfluous)"
        )
        for sample in found["samples"]:
            lines.append(f"    {sample['table']} {_row(sample['key'])}")
            lines.append(f"      was        {_row(sample['before'])}")
            lines.append(f"      should be  {_row(sample['after'])}")
    return "\n".join(lines)


def _outcome(view: Mapping[str, Any], changed: int) -> str:
    match view["state"]:
        case "done" if not changed:
            return "every row is as its events say"
        case "done":
            return "checked; nothing was replaced" if view["check"] else "rebuilt; the rows that differed are replaced"
        case "failed":
            return "the rebuild failed; where it did, nothing was replaced"
        case "cancelled":
            return "the rebuild was given up"
        case "incomplete":
            return "the rebuild was not begun in all partitions: give the same command again"
        case state:
            return f"the rebuild is {state}"


def _left_out(records: Mapping[str, int]) -> str:
    words = {
        "waiting": "wait or are dead letters, and are missing in the running table too",
        "discarded": "were discarded as dead letters",
        "unreadable": "cannot be read",
    }
    return "".join(f"; {records[name]:,} {said}" for name, said in words.items() if records[name])


def _row(row: Any) -> str:
    if row is None:
        return "-"
    text = msgspec.json.encode(row).decode()
    return text if len(text) <= ROW_CHARACTERS_MAX else f"{text[:ROW_CHARACTERS_MAX]}..."
