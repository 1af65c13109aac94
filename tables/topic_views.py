"""Routes that show the log: topics, their records, and the doctor's findings."""

import asyncio

from aiohttp import web

from streams.doctor import examine
from streams.records import bounds, read_page, record_view
from streams.service import Service
from streams.web import ENGINE, Problem, int_parameter, invalid, json_response

service = Service("topic-views")


@service.route("GET", "/topics")
async def list_topics(request: web.Request) -> web.StreamResponse:
    """Every topic of the application, `{items}`.

    An item is `{name, help, partitions: [{partition, start_offset, end_offset}]}`, the end being the next offset.
    """
    engine = request.app[ENGINE]
    changelogs = {table.changelog_topic(engine.settings.app_id): table for table in engine.tables.values()}
    helps = {topic.name: topic.help for topic in engine.topics.values()}
    helps |= {name: f"changelog of table {table.name}" for name, table in changelogs.items()}
    found = await bounds(engine.broker, sorted(helps), engine.settings.partitions)
    items = [
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
    return json_response({"items": items})


@service.route("GET", "/topics/{name}/records")
async def list_records(request: web.Request) -> web.StreamResponse:
    """Records of a topic, oldest first: `{items, next_offset, end_offset}`.

    With `?partition=&offset=` from there on; without an offset the newest ones, of one partition or of all (the offsets
    are then null). `?limit=` is 20, at most 1000.
    """
    engine, name = request.app[ENGINE], request.match_info["name"]
    changelogs = {table.changelog_topic(engine.settings.app_id) for table in engine.tables.values()}
    if name not in engine.topics and name not in changelogs:
        raise Problem(404, f"there is no topic {name}")
    limit = int_parameter(request, "limit", 20, 1, 1000)
    if "partition" in request.query:
        number = int_parameter(request, "partition", 0, 0, engine.settings.partitions - 1)
        offset = int_parameter(request, "offset", 0, 0, 2**63 - 1) if "offset" in request.query else None
        records, next_offset, end = await read_page(engine.broker, name, number, offset, limit)
        items = [record_view(number, record) for record in records]
        return json_response({"items": items, "next_offset": next_offset, "end_offset": end})
    if "offset" in request.query:
        raise invalid("offset", "needs a partition")
    numbers = range(engine.settings.partitions)
    pages = await asyncio.gather(*(read_page(engine.broker, name, number, None, limit) for number in numbers))
    newest = sorted(
        ((number, record) for number, (records, _, _) in zip(numbers, pages, strict=True) for record in records),
        key=lambda found: (found[1].timestamp_ms, found[0], found[1].offset),
    )[-limit:]
    items = [record_view(number, record) for number, record in newest]
    return json_response({"items": items, "next_offset": None, "end_offset": None})


@service.route("GET", "/doctor")
async def doctor(request: web.Request) -> web.StreamResponse:
    """What the worker stands on: a list of `{check, ok, detail, advice}`."""
    return json_response(await examine(request.app[ENGINE]))
