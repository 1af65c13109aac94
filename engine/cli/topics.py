"""The commands `topics` and `tail`: what is in the log."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import click
import msgspec

from engine.cli.client import NoWorker, client_for
from engine.cli.console import Failure, columns, echo, example, quiet_logging, run_until_interrupted, settings_from
from engine.cli.program import Command, in_words, program
from engine.cli.records import TopicRecords, open_broker, open_records
from engine.declare.settings import Settings
from engine.observe.records import bounds

POLL_INTERVAL_S = 0.2


class TopicRow(NamedTuple):
    """A line of the command `topics`; on Kafka `records` counts transaction markers too, which take offsets."""

    name: str
    partitions: int
    records: int
    help: str


@click.command(
    cls=Command, epilog=example("$program tail", "$program tail TOPIC --from-beginning --max 10 | jq .value")
)
@click.argument("topic", required=False)
@click.option("--from-beginning", is_flag=True, help="start at the oldest record instead of at the next one")
@click.option("--max", "max_records", type=click.IntRange(min=1), help="end after this many records")
@click.option("--url", help="the worker's address; by default what the settings say")
def tail(topic: str | None, from_beginning: bool, max_records: int | None, url: str | None) -> None:
    """Print the records of TOPIC$topic_default as they come, as JSON lines, until Ctrl-C.

    Records of one partition come in their order. On kafka:// they are read from Kafka, otherwise from the worker.
    """
    quiet_logging()
    topic = topic or program().topic
    if not topic:
        raise click.UsageError(f"give a topic; {in_words('topics')} lists them")
    run_until_interrupted(_tail(settings_from(), url, topic, from_beginning, max_records))


async def _tail(settings: Settings, url: str | None, topic: str, from_beginning: bool, max_records: int | None) -> None:
    async with open_records(settings, url, topic) as records:
        found = await records.bounds()
        positions = {partition: start if from_beginning else end for partition, (start, end) in found.items()}
        left = max_records
        while left is None or left > 0:
            printed = await _print_new(records, positions, left)
            left = None if left is None else left - printed
            if not printed:
                await asyncio.sleep(POLL_INTERVAL_S)


async def _print_new(records: TopicRecords, positions: dict[int, int], records_max: int | None) -> int:
    """Print what is there in each partition, at most `records_max` records; returns how many."""
    printed = 0
    for partition, position in positions.items():
        found, positions[partition] = await records.read(partition, position)
        for record in found:
            if printed == records_max:
                return printed
            echo(msgspec.json.encode(record).decode())
            printed += 1
    return printed


@click.command(cls=Command, epilog=example("$program topics"))
@click.option("--url", help="the worker's address; by default what the settings say")
def topics(url: str | None) -> None:
    """List the topics: partitions, records, and what they are for.

    Asks a running worker; without one the log itself is opened. On Kafka markers of transactions count as records.
    """
    quiet_logging()
    for line in table(run_until_interrupted(_topics(settings_from(), url)) or ()):
        echo(line)


async def _topics(settings: Settings, url: str | None) -> list[TopicRow]:
    try:
        async with client_for(settings, url) as client:
            return [topic_row(topic) for topic in (await client.get("/topics"))["items"]]
    except NoWorker:
        if url is not None or settings.transport == "memory":
            raise
    return await _topics_of_log(settings)


def topic_row(topic: Mapping[str, Any]) -> TopicRow:
    """The line of a topic as a worker shows it."""
    records = sum(partition["end_offset"] - partition["start_offset"] for partition in topic["partitions"])
    return TopicRow(topic["name"], len(topic["partitions"]), records, topic["help"])


async def _topics_of_log(settings: Settings) -> list[TopicRow]:
    if settings.transport == "embedded" and not (settings.data_dir / "log").is_dir():
        raise Failure(
            f"no worker answers at {settings.local_url}, and there is no log in {settings.data_dir.absolute()} yet. "
            f"Start one with {in_words('worker')}."
        )
    engine = program().create(settings).engine
    helps = {topic.name: topic.help for topic in engine.topics.values()}
    helps |= {t.changelog_topic(settings.app_id): f"changelog of table {t.name}" for t in engine.tables.values()}
    async with open_broker(settings) as broker:
        counts = {name: count for name, count in (await broker.topics()).items() if name in helps}
        found = {name: (await bounds(broker, [name], count))[name] for name, count in counts.items()}
    return [
        TopicRow(name, counts[name], sum(end - start for start, end in found[name]), helps[name]) for name in counts
    ]


def table(rows: Iterable[TopicRow]) -> list[str]:
    """Lines of a table with a head; changelogs, which belong to tables, come last."""
    ordered = sorted(rows, key=lambda row: (row.name.endswith("-changelog"), row.name))
    cells = [("topic", "partitions", "records", "")]
    cells += [(row.name, str(row.partitions), f"{row.records:,}", row.help) for row in ordered]
    return columns(cells, right=(1, 2))
