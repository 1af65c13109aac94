"""Routes that show the log: topics, their records, and the doctor's findings."""

import asyncio
from typing import TypedDict

from aiohttp import web

from engine.declare.operation import Operation, Parameter
from engine.declare.service import Service
from engine.health.check import Check
from engine.health.doctor import examine
from engine.observe.records import RecordView, bounds, read_page, record_view
from engine.web.answers import ENGINE, Problem, int_parameter, invalid, json_response
from engine.web.parameters import LIMIT, optional_number

service = Service("topic-views")


PARTITION = Parameter("partition", "only this partition", {"type": "integer", "minimum": 0})
OFFSET = optional_number("offset", "from this offset of the partition on", 0)


class Bounds(TypedDict):
    """Where a partition begins and ends; `end_offset` is the next one."""

    partition: int
    start_offset: int
    end_offset: int


class TopicView(TypedDict):
    """A topic, and where its partitions begin and end."""

    name: str
    help: str
    partitions: list[Bounds]


class TopicList(TypedDict):
    """All topics of the application."""

    items: list[TopicView]


class RecordPage(TypedDict):
    """Records, oldest first; the offsets are null when they are of several partitions."""

    items: list[RecordView]
    next_offset: int | None
    end_offset: int | None


@service.route("GET", "/topics", Operation({200: TopicList}))
async def list_topics(request: web.Request) -> web.StreamResponse:
    """Every topic of the application, `{items}`.

    An item is `{name, help, partitions: [{partition, start_offset, end_offset}]}`, the end being the next offset.
    """
    engine = request.app[ENGINE]
    changelogs = {table.changelog_topic(engine.settings.app_id): table for table in engine.tables.values()}
    helps = {topic.name: topic.help for topic in engine.topics.values()}
    helps |= {name: f"changelog of table {table.name}" for name, table in changelogs.items()}
    found = await bounds(engine.broker, sorted(helps), engine.settings.partitions)
    items: list[TopicView] = [
        {
            "name": name,
            "help": helps[name],
            "partitions": [
                {"partition": number, "start_offset": start, "end_offset": end}
                for number, (start, end) in enumerate(found[name])
            ],
        }
        for name in sorted(helps)
    ]
    return json_response(TopicList(items=items))


@service.route(
    "GET", "/topics/{name}/records", Operation({200: RecordPage}, (LIMIT, PARTITION, OFFSET), problems=(404,))
)
async def list_records(request: web.Request) -> web.StreamResponse:
    """Records of a topic, oldest first: `{items, next_offset, end_offset}`.

    With `?partition=&offset=` from there on; without an offset the newest ones, of one partition or of all (the offsets
    are then null). `?limit=` is 20, at most 1000.
    """
    engine, name = request.app[ENGINE], request.match_info["name"]
    changelogs = {table.changelog_topic(engine.settings.app_id) for table in engine.tables.values()}
    if name not in engine.topics and name not in changelogs:
        raise Problem(404, f"there is no topic {name}")
    limit = LIMIT.read(request)
    if PARTITION.name in request.query:
        number = int_parameter(request, PARTITION.name, 0, 0, engine.settings.partitions - 1)
        offset = OFFSET.read(request)
        records, next_offset, end = await read_page(engine.broker, name, number, offset, limit)
        items = [record_view(number, record) for record in records]
        return json_response(RecordPage(items=items, next_offset=next_offset, end_offset=end))
    if OFFSET.name in request.query:
        raise invalid(OFFSET.name, "needs a partition")
    numbers = range(engine.settings.partitions)
    pages = await asyncio.gather(*(read_page(engine.broker, name, number, None, limit) for number in numbers))
    newest = sorted(
        ((number, record) for number, (records, _, _) in zip(numbers, pages, strict=True) for record in records),
        key=lambda found: (found[1].timestamp_ms, found[0], found[1].offset),
    )[-limit:]
    items = [record_view(number, record) for number, record in newest]
    return json_response(RecordPage(items=items, next_offset=None, end_offset=None))


@service.route("GET", "/doctor", Operation({200: list[Check]}))
async def doctor(request: web.Request) -> web.StreamResponse:
    """What the worker stands on: a list of `{check, ok, detail, advice}`."""
    return json_response(await examine(request.app[ENGINE]))
