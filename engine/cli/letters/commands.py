"""The command `dead-letters`: look at what failed, and decide what becomes of it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, BinaryIO, TypeVar

import click
import msgspec

from engine.cli.client import Refused, WorkerClient, client_for, path_of
from engine.cli.console import Failure, echo, echo_json, example, run_until_interrupted, settings_from
from engine.cli.letters.text import group_table, letter_table, letter_text
from engine.cli.program import Group, in_words
from engine.cli.waiting import wait_for_token
from engine.web.dead_letters.filters import FILTERS, STATES

PAGE_LETTERS = 1000
POLL_S = 0.1
DECISION_WAIT = "2s"  # a decision that comes too late is told so

F = TypeVar("F", bound=Callable[..., Any])

_json_option = click.option("--json", "as_json", is_flag=True, help="print JSON, for programs")
_url_option = click.option("--url", help="the worker's address; by default what the settings say")
_yes_option = click.option("--yes", is_flag=True, help="do not ask before many letters are changed")
_state_option = click.option(
    "--state",
    type=click.Choice(tuple(STATES)),
    default="open",
    show_default=True,
    help="open ones include retrying ones",
)


def _filter_options(function: F) -> F:
    """Options for filters, all of which have to hold; the command gets those that are given as keywords."""
    for name, help in reversed(FILTERS.items()):
        function = click.option(f"--{name.replace('_', '-')}", name, help=help)(function)
    return function


def _limit_option(default: int, maximum: int) -> Callable[[F], F]:
    return click.option(
        "--limit", type=click.IntRange(1, maximum), default=default, show_default=True, help="at most so many"
    )


@click.group(
    cls=Group,
    name="dead-letters",
    epilog=example(
        "$program dead-letters groups",
        "$program dead-letters show 3-1764043200000000",
        "$program dead-letters retry --fingerprint 9f86d081884c7d65",
        "$program dead-letters discard 3-1764043200000000 --reason 'sent twice by mistake'",
    ),
)
def dead_letters() -> None:
    """See, retry and discard the records that could not be processed."""


# ---- looking


@dead_letters.command(
    name="list", epilog=example("$program dead-letters list --topic TOPIC --newer-than 2h --limit 100")
)
@_filter_options
@_state_option
@_limit_option(20, 100_000)
@_json_option
@_url_option
def list_letters(state: str, limit: int, as_json: bool, url: str | None, **filters: str | None) -> None:
    """List dead letters, newest first."""
    found = _run(url, lambda client: _list(client, {**_given(filters), "state": state}, limit))
    if as_json:
        echo_json(found)
        return
    _print_lines(letter_table(found["items"]) if found["items"] else ["no dead letters"])
    if found["next_cursor"] is not None:
        echo(f"There are more: see --limit, or {in_words('dead-letters groups')}.", err=True)


async def _list(client: WorkerClient, query: Mapping[str, str], limit: int) -> Any:
    """Pages until there are `limit` letters, as one page."""
    items: list[Any] = []
    cursor: dict[str, str] = {}
    while True:
        page = await client.get("/dead-letters", **query, **cursor, limit=min(PAGE_LETTERS, limit - len(items)))
        items += page["items"]
        if page["next_cursor"] is None or len(items) >= limit:
            return {"items": items, "next_cursor": page["next_cursor"]}
        cursor = {"cursor": page["next_cursor"]}


@dead_letters.command(
    epilog=example("$program dead-letters groups", "$program dead-letters groups --state all --json"),
)
@_filter_options
@_state_option
@_limit_option(20, 1000)
@_json_option
@_url_option
def groups(state: str, limit: int, as_json: bool, url: str | None, **filters: str | None) -> None:
    """Show what failed alike, most first."""
    found = _run(url, lambda client: client.get("/dead-letters/groups", **_given(filters), state=state, limit=limit))
    if as_json:
        echo_json(found)
    else:
        _print_lines(group_table(found["items"]) if found["items"] else ["no dead letters"])


@dead_letters.command(epilog=example("$program dead-letters show 3-1764043200000000"))
@click.argument("id")
@_json_option
@_url_option
def show(id: str, as_json: bool, url: str | None) -> None:
    """Show one dead letter: record, error, what was done, what waits behind it and what happened before."""
    found = _run(url, lambda client: client.get(path_of("dead-letters", id)))
    if as_json:
        echo_json(found)
    else:
        _print_lines(letter_text(found))


# ---- deciding


@dead_letters.command(
    epilog=example(
        "$program dead-letters retry 3-1764043200000000",
        "$program dead-letters retry 3-1764043200000000 --edit",
        "jq '.value.payload | .quantity = 2' letter.json | $program dead-letters retry 3-1764043200000000 --payload -",
        "$program dead-letters retry --topic TOPIC --error Timeout --rate 10",
    )
)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@_filter_options
@click.option("--all", "everything", is_flag=True, help="all open letters, without any filter")
@_limit_option(1000, 10_000)
@click.option(
    "--rate", type=click.FloatRange(0, min_open=True), default=100.0, show_default=True, help="letters a second"
)
@click.option("--payload", type=click.File("rb"), help="JSON to take the place of the payload (- for standard input)")
@click.option("--value", type=click.File("rb"), help="JSON to take the place of the whole record, with a new eventId")
@click.option("--edit", is_flag=True, help="change the payload (or a record that is none) in $EDITOR")
@click.option(
    "--wait", type=click.FloatRange(0), default=2.0, show_default=True, help="seconds to wait for how it ends"
)
@_yes_option
@_json_option
@_url_option
def retry(
    ids: Sequence[str],
    everything: bool,
    limit: int,
    rate: float,
    payload: BinaryIO | None,
    value: BinaryIO | None,
    edit: bool,
    wait: float,
    yes: bool,
    as_json: bool,
    url: str | None,
    **filters: str | None,
) -> None:
    """Try dead letters again: those with these IDs, or all that filters mean.

    What failed for the same reason is shown before many are tried. One letter can be edited first; it is then another
    command or event, caused by the original one.
    """
    _check_choice(ids, filters, everything)
    edits = [name for name, given in (("payload", payload), ("value", value), ("edit", edit)) if given]
    if edits and (len(ids) != 1 or len(edits) > 1):
        raise click.UsageError("--payload, --value and --edit change one letter, and exclude each other")
    if ids:
        body = {name: _read_json(file) for name, file in (("payload", payload), ("value", value)) if file is not None}
        _run(url, lambda client: _retry_each(client, ids, body, edit, wait, as_json))
    else:
        body = {**_given(filters), "limit": limit, "rate": rate}
        _run(url, lambda client: _change_many(client, "retry", "retried", body, yes, as_json))


@dead_letters.command(
    epilog=example(
        "$program dead-letters discard 3-1764043200000000 --reason 'sent twice by mistake'",
        "$program dead-letters discard --older-than 30d --reason 'nobody needs them any more'",
    )
)
@click.argument("ids", nargs=-1, metavar="[ID]...")
@click.option("--reason", required=True, help="for the audit trail")
@_filter_options
@click.option("--all", "everything", is_flag=True, help="all open letters, without any filter")
@_limit_option(1000, 10_000)
@_yes_option
@_json_option
@_url_option
def discard(
    ids: Sequence[str],
    reason: str,
    everything: bool,
    limit: int,
    yes: bool,
    as_json: bool,
    url: str | None,
    **filters: str | None,
) -> None:
    """Give dead letters up: those with these IDs, or all that filters mean. What waits behind them goes on."""
    _check_choice(ids, filters, everything)
    if ids:
        _run(url, lambda client: _discard_each(client, ids, reason, as_json))
    else:
        body = {**_given(filters), "limit": limit, "reason": reason, "all": everything}
        _run(url, lambda client: _change_many(client, "discard", "discarded", body, yes, as_json))


def _check_choice(ids: Sequence[str], filters: Mapping[str, str | None], everything: bool) -> None:
    if [bool(ids), bool(_given(filters)), everything].count(True) != 1:
        raise click.UsageError("give either IDs, or at least one filter, or --all")


async def _retry_each(
    client: WorkerClient, ids: Sequence[str], body: Mapping[str, Any], edit: bool, wait_s: float, as_json: bool
) -> None:
    if edit:
        body = _edit(await client.get(path_of("dead-letters", ids[0])))

    async def retry_one(id: str) -> Any:
        _, answer = await client.post(path_of("dead-letters", id, "retry"), body, wait=DECISION_WAIT)
        return await _outcome(client, id, answer["token"], wait_s)

    await _each(ids, retry_one, as_json)


async def _discard_each(client: WorkerClient, ids: Sequence[str], reason: str, as_json: bool) -> None:
    async def discard_one(id: str) -> Any:
        _, answer = await client.post(path_of("dead-letters", id, "discard"), {"reason": reason}, wait=DECISION_WAIT)
        return await _outcome(client, id, answer["token"], 0)

    await _each(ids, discard_one, as_json)


async def _each(ids: Sequence[str], change: Callable[[str], Any], as_json: bool) -> None:
    """Change one letter after the other and tell what became of each; exit status 1 when one could not be changed."""
    results, failed = [], False
    for id in ids:
        try:
            letter = await change(id)
        except Refused as refused:
            failed = True
            results.append({"id": id, "state": None, "problem": refused.problem})
            echo(f"{id}: {refused.message}", err=True)
            continue
        results.append({"id": id, "state": letter["state"]})
        failed_again = letter["state"] == "open"
        failed = failed or failed_again
        if not as_json:
            echo(f"{id}: " + (f"failed again: {letter['error']}" if failed_again else letter["state"]))
    if as_json:
        echo_json(results)
    if failed:
        raise SystemExit(1)


async def _outcome(client: WorkerClient, id: str, token: str, wait_s: float) -> Any:
    """The letter once it is not being tried any more, or as it is after `wait_s` seconds."""
    path, deadline = path_of("dead-letters", id), time.monotonic() + wait_s
    await wait_for_token(client, path, token)
    letter = await client.get(path)
    while letter["state"] == "retrying" and time.monotonic() < deadline:
        await asyncio.sleep(POLL_S)
        letter = await client.get(path)
    return letter


async def _change_many(
    client: WorkerClient, verb: str, done: str, body: Mapping[str, Any], yes: bool, as_json: bool
) -> None:
    """Show what would be changed, ask, and change it."""
    path = f"/dead-letters/{verb}"
    _, tried = await client.post(path, {**body, "dry_run": True})
    if not yes and tried[done]:
        filters = {name: str(body[name]) for name in FILTERS if name in body}
        _print_lines(group_table((await client.get("/dead-letters/groups", **filters))["items"]), err=True)
        click.confirm(f"{_summary(tried, done, 'can be ')}. {verb.capitalize()} {tried[done]}?", abort=True, err=True)
    answer = (await client.post(path, body, wait=DECISION_WAIT))[1] if tried[done] else tried
    refused = answer.get("decisions", {}).get("refused", [])
    if as_json:
        echo_json(answer)
    else:
        echo(_summary(answer, done, ""))
        _print_lines([f"  {skipped['id']}: {skipped['reason']}" for skipped in answer["skipped"]])
        _print_lines([f"  {letter['id']} is left as it was: {letter['detail']}" for letter in refused])
    if refused:
        raise SystemExit(1)


def _summary(answer: Mapping[str, Any], done: str, modal: str) -> str:
    decisions = answer.get("decisions", {})
    counts = {
        "skipped": answer["skipped_count"],
        "refused": decisions.get("refused_count", 0),
        "still on their way": decisions.get("undecided", 0),
    }
    others = "".join(f", {count:,} {name}" for name, count in counts.items() if count)
    changed = answer[done] - counts["refused"]
    return f"{changed:,} of {answer['matched']:,} dead letters {modal}{done}{others}"


# ---- what is given and printed


def _run(url: str | None, main: Callable[[WorkerClient], Any]) -> Any:
    """Run with a client; Ctrl-C is a failure, as nobody knows how far it came."""

    async def run() -> tuple[Any]:
        async with client_for(settings_from(), url) as client:
            return (await main(client),)

    found = run_until_interrupted(run())
    if found is None:
        raise Failure("interrupted")
    return found[0]


def _given(filters: Mapping[str, str | None]) -> dict[str, str]:
    return {name: text for name, text in filters.items() if text is not None}


def _read_json(file: BinaryIO) -> Any:
    try:
        return msgspec.json.decode(file.read())
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Failure(f"{file.name} is not JSON: {error}") from error


def _edit(letter: Mapping[str, Any]) -> Mapping[str, Any]:
    """The body of a retry, with what somebody made of the letter's payload in an editor."""
    value = letter["value"]
    if not letter["complete"] or "value_base64" in letter:
        raise Failure(f"the record of {letter['id']} cannot be shown in an editor: give another one with --value")
    is_envelope = isinstance(value, dict) and isinstance(value.get("payload"), dict)
    before = msgspec.json.format(msgspec.json.encode(value["payload"] if is_envelope else value), indent=2).decode()
    after = click.edit(f"{before}\n", extension=".json")
    if after is None or after.strip() == before:
        raise Failure("nothing was changed, and nothing is tried again")
    try:
        return {"payload" if is_envelope else "value": msgspec.json.decode(after)}
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Failure(f"what was edited is not JSON: {error}") from error


def _print_lines(lines: Iterable[str], err: bool = False) -> None:
    for line in lines:
        echo(line, err=err)
