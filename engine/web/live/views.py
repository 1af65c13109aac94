"""The routes of what happens now."""

from aiohttp import web

from engine.declare.operation import Undocumented
from engine.declare.service import Service
from engine.web.event_stream import send_stream
from engine.web.live.hub import LIVE, install

service = Service("live")
service.web_setup(install)


@service.route("GET", "/live", Undocumented("OpenAPI has no words for events that never end"))
async def get_live(request: web.Request) -> web.StreamResponse:
    """Server-sent events of what happens from now on, in all partitions.

    `dead-letters`, and the events that services declare, are `{items, left_out}`: rows that were changed and committed,
    the last 100 of a moment, and how many more there were. `figures` comes once a second. `resync`: something was
    missed, read anew what you show. 503 when the worker keeps as many streams as it can.
    """
    hub = request.app[LIVE]
    with hub.subscribed(hub.everywhere) as subscriber:
        return await send_stream(request, subscriber)


@service.route("GET", "/internal/live")
async def get_live_here(request: web.Request) -> web.StreamResponse:
    """For other workers: the same of the partitions of this worker."""
    hub = request.app[LIVE]
    with hub.subscribed(hub.here) as subscriber:
        return await send_stream(request, subscriber)
