"""Routes for those who run the system: is it alive, is it ready, what are its figures."""

from typing import Literal, TypedDict

import msgspec
from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST

from engine.calls.circuit import Pause
from engine.declare.operation import Answer, Operation
from engine.declare.service import Service
from engine.web.answers import ENGINE, FAUST_APP, GAUGES, Problem, json_response, unavailable

service = Service("health")


class Health(TypedDict):
    """A worker that can go on by itself."""

    status: Literal["ok"]


class Readiness(TypedDict):
    """A worker that has restored all its partitions, and whose calls to the outside are paused."""

    status: Literal["ready"]
    partitions: list[int]
    paused: list[Pause]


@service.route("GET", "/healthz", Operation({200: Health}))
async def healthz(request: web.Request) -> web.StreamResponse:
    """200 while the worker can go on by itself, 503 when somebody has to do something."""
    engine = request.app[ENGINE]
    if engine.fatal is not None:
        raise Problem(503, engine.fatal)
    if faults := engine.faults.open():
        raise Problem(
            503, "; ".join(fault.sentence for fault in faults), faults=[msgspec.to_builtins(f) for f in faults]
        )
    return json_response(Health(status="ok"))


@service.route("GET", "/readyz", Operation({200: Readiness}))
async def readyz(request: web.Request) -> web.StreamResponse:
    """200 when every owned partition is restored and the log answers, 503 otherwise; says which agents are paused."""
    engine = request.app[ENGINE]
    if (reason := engine.disk.refusal) is not None:
        raise unavailable(reason)
    if not engine.is_ready():
        restored = {number for number, task in engine.tasks.items() if task.life.is_running()}
        missing = engine.numbers - restored
        known = [fault.detail for fault in engine.faults.open() if fault.partition in missing]
        why = "; ".join(known) or "waiting for the group, or restoring"
        raise unavailable(f"{why}: partitions {sorted(missing)} are not restored yet")
    if (reason := engine.broker_watch.not_ready()) is not None:
        raise unavailable(reason)
    return json_response(Readiness(status="ready", partitions=sorted(engine.numbers), paused=engine.pauses()))


@service.route("GET", "/metrics", Operation({200: Answer(media_type="text/plain")}))
async def metrics(request: web.Request) -> web.StreamResponse:
    """All figures in the Prometheus text format."""
    await request.app[GAUGES].refresh(request.app[FAUST_APP].consumer)
    return web.Response(body=request.app[ENGINE].metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})
