"""Routes of the audit: of whole partitions, and of one order."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import TypedDict

from aiohttp import web

from engine import Service
from engine.inspection import PartitionTask
from engine.web import (
    ENGINE,
    ROUTER,
    TIMEOUT_MAX_S,
    Operation,
    Problem,
    json_response,
    partition_of,
    task_here,
    unavailable,
)
from tables.audit.audits import AUDITS_KEY, AuditReport, Audits
from tables.audit.findings import Difference
from tables.audit.nightly import NightlyAudits
from tables.audit.one_order import OrderAudit

service = Service("audit-views")


class OrderAuditView(TypedDict):
    """How an order's rows stand against its events.

    `agrees` is null where it cannot be proven: `unproven` says why. `records` and `rows` were compared.
    """

    order_id: str
    agrees: bool | None
    records: int
    rows: int
    differences: list[Difference]
    unproven: list[str]


@service.web_setup
def set_up(application: web.Application) -> None:
    """The routes share the audits of the worker, which also makes some by itself."""
    audits = application[AUDITS_KEY] = Audits(application[ENGINE])
    nightly = NightlyAudits(application[ENGINE], audits)

    async def beside(_: web.Application) -> AsyncIterator[None]:
        running = asyncio.create_task(nightly.run(), name="nightly audits")
        yield
        running.cancel()
        await asyncio.wait([running])

    application.cleanup_ctx.append(beside)


@service.route("POST", "/audit/partitions/{number}", Operation({202: AuditReport}, problems=(404,)))
async def begin_audit(request: web.Request) -> web.StreamResponse:
    """Begin to hold the rows of a partition against its topics, unless that is under way; 202 with the same as GET.

    Nothing is changed, and everything else goes on. The last result is kept: the doctor tells it, and differences are
    a fault (`/healthz` is 503) until an audit finds none.
    """
    task = _task(request)
    if task is None:
        return await _forward(request)
    return json_response(request.app[AUDITS_KEY].begin(task), 202)


@service.route("GET", "/audit/partitions/{number}", Operation({200: AuditReport}, problems=(404,)))
async def show_audit(request: web.Request) -> web.StreamResponse:
    """How far the last audit of a partition is, and what it found; 404 when its worker has made none since it began."""
    task = _task(request)
    if task is None:
        return await _forward(request)
    report = request.app[AUDITS_KEY].report(task.number)
    if report is None:
        raise Problem(404, f"partition {task.number} was not audited here; begin with POST")
    return json_response(report)


@service.route("GET", "/audit/orders/{order_id}", Operation({200: OrderAuditView}, problems=(404,)))
async def audit_order(request: web.Request) -> web.StreamResponse:
    """Hold the rows of an order against its events, which are looked for in the whole topic of its partition.

    `{order_id, agrees, records, rows, differences, unproven}`; `agrees` is null where the log can no longer tell.
    404 when there is neither an event nor a row; 503 when the topic is too long to be read in 30 s: use `orders audit`.
    """
    order_id, number = request.match_info["order_id"], partition_of(request, request.match_info["order_id"])
    task = task_here(request, number)
    if task is None:
        return await request.app[ROUTER].forward(request, number)
    audit = OrderAudit(request.app[ENGINE], task, order_id)
    try:
        async with asyncio.timeout(TIMEOUT_MAX_S):
            await task.long_reads.run(audit.run(), f"audit of an order in partition {number}")
    except TimeoutError as error:
        raise unavailable(f"partition {number} cannot be read in {TIMEOUT_MAX_S:.0f} s: use `orders audit`") from error
    found = audit.findings
    if not (found.records or found.rows or found.unproven or found.count):
        raise Problem(404, f"there is no order {order_id}")
    view: OrderAuditView = {
        "order_id": order_id,
        "agrees": False if found.count else None if found.unproven else True,
        "records": found.records,
        "rows": found.rows,
        "differences": found.differences,
        "unproven": found.unproven,
    }
    return json_response(view)


def _task(request: web.Request) -> PartitionTask | None:
    """The task of the partition `{number}` in the path, None when another worker owns it; raises a 404 problem."""
    return task_here(request, _number(request))


def _number(request: web.Request) -> int:
    text, count = request.match_info["number"], request.app[ENGINE].settings.partitions
    if not (text.isascii() and text.isdecimal() and int(text) < count):
        raise Problem(404, f"there is no partition {text}")
    return int(text)


async def _forward(request: web.Request) -> web.StreamResponse:
    return await request.app[ROUTER].forward(request, _number(request))
