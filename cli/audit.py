"""`orders audit`: the rows of all tables that events lead to, held against their topics."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

import click

from engine.cli import (
    Failure,
    NoWorker,
    Refused,
    Steps,
    WorkerClient,
    client_for,
    echo,
    echo_json,
    example,
    path_of,
    run_until_interrupted,
    settings_from,
    steps,
)

POLL_S: Final = 0.2
DIFFERS: Final = 1
CANNOT_BE_PROVEN: Final = 2

Report = Mapping[str, Any]


class Unproven(Failure):
    """The audit could not be made. Exit status 2."""

    exit_code = CANNOT_BE_PROVEN


@click.command(epilog=example("orders audit", "orders audit --order order-123", "orders audit --json"))
@click.option("--order", "order_id", help="only this order")
@click.option("--json", "as_json", is_flag=True, help="print JSON, for programs")
@click.option("--url", help="the worker's address; by default what the settings say")
def audit(order_id: str | None, as_json: bool, url: str | None) -> None:
    """Hold the rows of all tables against the topics that they come from, both ways.

    Works while orders come in: each partition is cut between two commits. Prints a line for each difference, with
    topic, partition and offset. Exits with 0 when everything agrees, with 1 when something differs, and with 2 when it
    cannot be proven: events were removed from a topic, or a partition could not be reached.
    """
    found = run_until_interrupted(_audit_order(order_id, url) if order_id else _audit_all(url))
    if found is None:
        raise Unproven("interrupted: an audit that has begun goes on, and the doctor tells how it ended")
    if as_json:
        echo_json(found)
    else:
        for line in lines_of(found):
            echo(line)
    if status := status_of(found):
        raise SystemExit(status)


async def _audit_order(order_id: str, url: str | None) -> Report:
    async with client_for(settings_from(), url) as client:
        try:
            found = await client.find(path_of("audit", "orders", order_id))
        except (NoWorker, Refused) as error:
            raise Unproven(error.message) from error
    if found is None:
        raise Unproven(f"there is no order {order_id}: neither an event nor a row")
    return found  # type: ignore[no-any-return]


async def _audit_all(url: str | None) -> Report:
    async with client_for(settings_from(), url) as client:
        try:
            with steps() as progress:
                return {"partitions": await audit_partitions(client, progress)}
        except (NoWorker, Refused) as error:
            raise Unproven(error.message) from error


async def audit_partitions(client: WorkerClient, progress: Steps) -> list[Report]:
    """Audit every partition, and return the reports once all are over; raises NoWorker, Refused."""
    reports: list[Report] = []
    while (report := await _begin(client, len(reports))) is not None:
        reports.append(report)
    progress.step("auditing", _total(reports))
    done = 0
    while any(report["state"] == "running" for report in reports):
        await asyncio.sleep(POLL_S)
        reports = [await _look(client, report) for report in reports]
        now = sum(report["records_done"] for report in reports)
        progress.note(_phases(reports), _total(reports))
        progress.advance(now - done)
        done = now
    return reports


async def _begin(client: WorkerClient, number: int) -> Report | None:
    """Begin the audit of a partition; None when there is no partition of this number."""
    try:
        _, report = await client.post(path_of("audit", "partitions", str(number)), {})
    except Refused as refused:
        if refused.status == 404 and number:
            return None
        raise
    return report  # type: ignore[no-any-return]


async def _look(client: WorkerClient, report: Report) -> Report:
    """How an audit stands; one whose partition has moved meanwhile has failed."""
    if report["state"] != "running":
        return report
    found = await client.find(path_of("audit", "partitions", str(report["partition"])))
    if found is None or found["id"] != report["id"]:
        return {**report, "state": "failed", "error": "the partition moved to another worker meanwhile"}
    return found  # type: ignore[no-any-return]


def _total(reports: Sequence[Report]) -> int:
    return sum(report["records_total"] for report in reports)


def _phases(reports: Sequence[Report]) -> str:
    return ", ".join(sorted({report["phase"] for report in reports} - {"", "waiting"}))


def status_of(found: Report) -> int:
    """The exit status: differences count more than what cannot be proven."""
    parts: Sequence[Report] = found.get("partitions", [found])
    if any(_count(part) for part in parts):
        return DIFFERS
    return CANNOT_BE_PROVEN if any(part["unproven"] or part.get("error") for part in parts) else 0


def lines_of(found: Report) -> list[str]:
    """What an audit has found, for people: a line for each difference, and one that sums up."""
    parts: Sequence[Report] = found.get("partitions", [found])
    lines = [_sentence(difference) for part in parts for difference in part["differences"]]
    told, count = len(lines), sum(map(_count, parts))
    if told < count:
        lines.append(f"... and {count - told:,} more")
    lines += [f"cannot be proven: {why}" for part in parts for why in part["unproven"]]
    lines += [
        f"cannot be proven: partition {part['partition']}: {part['error']}" for part in parts if part.get("error")
    ]
    compared = f"{sum(part['records'] for part in parts):,} events and {sum(part['rows'] for part in parts):,} rows"
    outcome = {0: "all agree", DIFFERS: f"{count:,} differences", CANNOT_BE_PROVEN: "no differences found"}
    return [*lines, f"{compared} compared: {outcome[status_of(found)]}"]


def _count(part: Report) -> int:
    return int(part.get("difference_count", len(part["differences"])))


def _sentence(difference: Report) -> str:
    offset, table = difference["offset"], difference["table"]
    place = f"{difference['topic']}/{difference['partition']}" + (f"@{offset}" if offset is not None else "")
    row = f" {table}[{difference['key']}]" if table is not None else ""
    return f"{place}{row}: {difference['detail']}"
