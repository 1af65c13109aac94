"""The route by which workers wait for each other's agents, for the sake of tokens.

It is no query: its address stays as it is, so that tokens are waited for while workers of two releases are up.
"""

from aiohttp import web

from engine.declare.service import Service
from engine.web.answers import (
    ENGINE,
    TIMEOUT_S,
    Problem,
    duration_parameter,
    int_parameter,
    json_response,
)
from engine.web.freshness import wait_here
from engine.work.waiters import Wanted

service = Service("positions")


@service.route("GET", "/internal/positions/{topic}/{number}")
async def wait_for_position(request: web.Request) -> web.StreamResponse:
    """For other workers: answers when `agent` has passed `offset`, 504 with the lag after `timeout`."""
    topic, agent = request.match_info["topic"], request.query.get("agent", "")
    offset = int_parameter(request, "offset", 0, 0, 2**63 - 1)
    timeout_s = duration_parameter(request, "timeout", TIMEOUT_S)
    engine = request.app[ENGINE]
    if agent not in engine.agents_of(topic) or not request.match_info["number"].isdecimal():
        raise Problem(404, f"there is no agent {agent} of {topic}")
    task = engine.task(int(request.match_info["number"]))
    key = request.query["key"].encode() if "key" in request.query else None
    mark = int_parameter(request, "mark", 0, 0, 2**32 - 1) if "mark" in request.query else None
    await wait_here(task, agent, topic, Wanted(offset, "exact" in request.query, key, mark), timeout_s)
    return json_response({"reached": task.reached(agent, topic)})
