"""Routes for those who run the system: is it alive, is it ready, what are its figures."""

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from streams.engine.partition_task import TaskState
from streams.service import Service
from streams.web import ENGINE, FAUST_APP, GAUGES, Problem, json_response, unavailable

service = Service("health")


@service.route("GET", "/healthz")
async def healthz(request: web.Request) -> web.StreamResponse:
    """200 while the worker can go on by itself, 503 when somebody has to do something."""
    fatal = request.app[ENGINE].fatal
    if fatal is not None:
        raise Problem(503, fatal)
    return json_response({"status": "ok"})


@service.route("GET", "/readyz")
async def readyz(request: web.Request) -> web.StreamResponse:
    """200 when every owned partition is restored, 503 before; says which agents wait for something outside."""
    engine = request.app[ENGINE]
    if not engine.is_ready():
        restored = {number for number, task in engine.tasks.items() if task.state is TaskState.RUNNING}
        raise unavailable(f"waiting for the group, or restoring partitions {sorted(engine.numbers - restored)}")
    return json_response({"status": "ready", "partitions": sorted(engine.numbers), "paused": engine.pauses()})


@service.route("GET", "/metrics")
async def metrics(request: web.Request) -> web.StreamResponse:
    """All figures in the Prometheus text format."""
    await request.app[GAUGES].refresh(request.app[FAUST_APP].consumer)
    return web.Response(body=request.app[ENGINE].metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
