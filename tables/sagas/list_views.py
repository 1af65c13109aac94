"""The web view of sagas that wait for somebody: which step could not be undone, why, and since when."""

from __future__ import annotations

from typing import Final, TypedDict

from aiohttp import web

from domain.sagas.state import COMPENSATION_FAILED
from engine import Service, format_ms
from engine.web import (
    CURSOR,
    FRESHNESS,
    LIMIT,
    Operation,
    Parameter,
    TableRow,
    catch_up,
    invalid,
    json_response,
    rows_of,
)
from tables.orders.queries import SAGA_PATH
from tables.sagas import FAILED_SAGAS

service = Service("stuck-saga-views")


STATE: Final = Parameter(
    "state", "the state of the sagas", {"type": "string", "enum": [COMPENSATION_FAILED], "default": COMPENSATION_FAILED}
)


class StuckSaga(TypedDict):
    """A saga that waits for somebody."""

    order_id: str
    state: str
    step: str
    line: int | None
    error: str | None
    failed_at: str


class StuckSagas(TypedDict):
    """A page of them."""

    items: list[StuckSaga]
    next_cursor: str | None


@service.route("GET", "/sagas", Operation({200: StuckSagas}, (STATE, LIMIT, CURSOR, *FRESHNESS)))
async def list_sagas(request: web.Request) -> web.StreamResponse:
    """Sagas that wait for somebody, `{items, next_cursor}`, partition after partition, by order id.

    `?state=` has to be `compensation_failed`: of other sagas there is only the number, in `/metrics`. An item is
    `{order_id, state, step, line, error, failed_at}`: the step that could not be undone, and the line of the order it
    is about, or null. `?limit=` is 20, at most 1000. 503 when a partition cannot be read now.
    """
    if request.query.get("state", COMPENSATION_FAILED) != COMPENSATION_FAILED:
        raise invalid("state", f"{COMPENSATION_FAILED}; other sagas are at /sagas/ORDER_ID")
    await catch_up(request, SAGA_PATH, None)
    items, next_cursor = await rows_of(request, FAILED_SAGAS)
    return json_response(StuckSagas(items=[_view(item) for item in items], next_cursor=next_cursor))


def _view(item: TableRow) -> StuckSaga:
    failed = FAILED_SAGAS.decode_row(item.row)
    return {
        "order_id": item.key,
        "state": COMPENSATION_FAILED,
        "step": failed.step,
        "line": failed.line or None,
        "error": failed.error,
        "failed_at": format_ms(failed.failed_ms),
    }
