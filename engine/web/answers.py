"""What all routes of the web view share: JSON answers, problems (RFC 9457), parameters and the bearer token."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import datetime
from http import HTTPStatus
from typing import Any, cast

import msgspec
from aiohttp import hdrs, web
from multidict import CIMultiDict, istr

from engine.declare.service import Service
from engine.declare.settings import Settings
from engine.failures.classify import NAME_CHARACTERS_MAX, InfrastructureError
from engine.log.ports import TransportError
from engine.observe.about import about
from engine.observe.gauges import Gauges
from engine.partition.engine import Engine, PartitionNotHere
from engine.store.store import StoreError
from engine.web.browsers import host_check, is_from_another_site
from engine.work.waiters import PartitionLost, TooManyWaiters

log = logging.getLogger(__name__)

ENGINE: web.AppKey[Engine] = web.AppKey("engine", Engine)
FAUST_APP: web.AppKey[Any] = web.AppKey("faust_app", object)
SERVICES: web.AppKey[Sequence[Service]] = web.AppKey("services", Sequence)
GAUGES: web.AppKey[Gauges] = web.AppKey("gauges", Gauges)

BODY_BYTES_MAX = 1 << 20
TIMEOUT_S = 2.0
TIMEOUT_MAX_S = 30.0

# An answer is data: nothing in it is a page, runs, is framed or is kept. A page says what it needs itself.
SECURITY_HEADERS: CIMultiDict[str] = CIMultiDict(
    {
        "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
        "Cross-Origin-Resource-Policy": "same-origin",
        "Cache-Control": "no-store",
    }
)
_SECURED = istr("Cross-Origin-Resource-Policy")  # an answer that has it has the others
_JSON_HEADERS = CIMultiDict(SECURITY_HEADERS, **{hdrs.CONTENT_TYPE: "application/json"})
SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
# The same request may succeed a moment later, or at another worker.
PASSING = (PartitionNotHere, PartitionLost, TooManyWaiters, TransportError, InfrastructureError, StoreError)
DURATION = re.compile(r"([0-9]{1,9}(?:\.[0-9]{1,9})?)(ms|s)?")
encode_json = msgspec.json.Encoder().encode
"""JSON of structs, dictionaries and lists; decimals become strings."""
_changes: set[asyncio.Future[web.StreamResponse]] = set()

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Around = Callable[[Handler], Handler]
"""What stands around all requests, before a route is looked for; as aiohttp's middleware it costs a read 6 % more."""


class Problem(Exception):
    """An answer of `application/problem+json`; `members` are the extension members of this kind of problem.

    `errors` holds one `{"field": ..., "message": ...}` per field that cannot be used.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        *,
        errors: Iterable[Mapping[str, str]] = (),
        headers: Mapping[str, str] | None = None,
        **members: Any,
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.headers = dict(headers or {})
        self.body: dict[str, Any] = {
            "type": "about:blank",
            "title": HTTPStatus(status).phrase,
            "status": status,
            "detail": detail,
        }
        if listed := list(errors):
            self.body["errors"] = listed
        self.body |= members

    def response(self) -> web.Response:
        """The problem as an HTTP answer."""
        return web.Response(
            body=encode_json(self.body),
            status=self.status,
            content_type="application/problem+json",
            headers=self.headers,
        )


def problem_of(status: int, body: bytes) -> Problem:
    """The problem that another worker answered."""
    told: dict[str, Any] = msgspec.json.decode(body)
    problem = Problem(status, told["detail"])
    problem.body = told
    return problem


def unavailable(detail: str) -> Problem:
    """A 503 for what passes by itself; the client is told to come again in a second."""
    return Problem(503, detail, headers={"Retry-After": "1"})


def invalid(field: str, message: str) -> Problem:
    """A 422 for one field: of the body, the query or the headers."""
    return Problem(422, f"{field}: {message}", errors=[{"field": field, "message": message}])


def json_response(value: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer of JSON, see `encode_json`."""
    return json_answer(encode_json(value), status, headers)


def json_answer(body: bytes, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """An answer of JSON that is encoded already."""
    made = _JSON_HEADERS  # of which the answer makes a copy
    if headers:
        made = made.copy()
        made.update(headers)
    return web.Response(body=body, status=status, headers=made)


def int_parameter(request: web.Request, name: str, default: int, minimum: int, maximum: int) -> int:
    """A whole number of the query; raises a 422 problem when it is none or out of bounds."""
    text = request.query.get(name)
    if text is None:
        return default
    if not re.fullmatch(r"-?[0-9]{1,19}", text) or not minimum <= int(text) <= maximum:
        raise invalid(name, f"a whole number from {minimum} to {maximum}")
    return int(text)


def duration_parameter(request: web.Request, name: str, default_s: float) -> float:
    """Seconds given as `2s`, `500ms` or `2`; raises a 422 problem when it is none or over TIMEOUT_MAX_S."""
    text = request.query.get(name)
    if text is None:
        return default_s
    found = DURATION.fullmatch(text)
    seconds = float(found[1]) / (1000 if found[2] == "ms" else 1) if found else -1.0
    if not 0 <= seconds <= TIMEOUT_MAX_S:
        raise invalid(name, f"a time like 2s or 500ms, at most {TIMEOUT_MAX_S:.0f}s")
    return seconds


def secure(response: web.StreamResponse) -> None:
    """Add what keeps browsers from taking an answer for more than it is, unless its handler has said otherwise.

    Every answer gets it; a handler that prepares a stream by itself has to call this before.
    """
    for name, value in SECURITY_HEADERS.items():
        response.headers.setdefault(name, value)


class FieldProblem(msgspec.Struct, frozen=True):
    """What is wrong with one field: of the body, the query or the headers."""

    field: str
    message: str


class ProblemDetails(msgspec.Struct, frozen=True):
    """A problem (RFC 9457); some kinds have more members, as their routes say."""

    type: str
    title: str
    status: int
    detail: str
    errors: list[FieldProblem] | msgspec.UnsetType = msgspec.UNSET


def time_of(name: str, text: str) -> datetime:
    """The time that a parameter's text says; raises a 422 problem when it is none or has no zone."""
    try:
        # A plus sign in a query is a space, unless it is encoded.
        time = datetime.fromisoformat(text.replace(" ", "+"))
    except ValueError as error:
        raise invalid(name, "a time such as 2026-11-23T10:00:00Z") from error
    if time.utcoffset() is None:
        raise invalid(name, "a time with its zone, such as 2026-11-23T10:00:00Z")
    return time


def _refusals_of_browsers(settings: Settings) -> tuple[str, str]:
    """What is said to a browser that knows the worker by another name, and to a page of another site."""
    web_url = settings.variable("web_url")
    return (
        "this worker listens on its own machine only and is not known by the name in the header Host; "
        f"ask for localhost or 127.0.0.1, or set {web_url} to the address of the proxy before it",
        "a page of another site may not change anything here; if the page is this worker's own, behind a proxy, "
        f"set {web_url} to the address in the browser",
    )


def answer_problems(engine: Engine, bound_to: str) -> Around:
    """Around all requests: checks who asks, turns errors into problems, and secures the answers.

    `bound_to` is the address the worker listens on.
    """
    settings, attention = engine.settings, engine.loop_share.somebody_asks
    token = settings.api_token.get_secret_value()
    expected = f"Bearer {token}".encode() if token else b""
    is_ours = host_check(settings, bound_to)
    forwarded = settings.application.header("Forwarded")
    unknown_host, other_site = _refusals_of_browsers(settings)
    no_token = (
        f"changing requests need the header Authorization: Bearer with the worker's {settings.variable('api_token')}"
    )

    def around(handle: Handler) -> Handler:
        async def answer(request: web.Request) -> web.StreamResponse:
            attention()
            try:
                if is_ours is not None and not is_ours(request.headers.get(hdrs.HOST, "localhost")):
                    raise Problem(421, unknown_host)
                is_change = request.method not in SAFE_METHODS
                if is_change:
                    if is_from_another_site(request, settings.web_url):
                        raise Problem(403, other_site)
                    if expected:
                        _check_token(request, expected, no_token)
                response = await (_to_its_end(handle(request)) if is_change else handle(request))
            except Problem as problem:
                response = problem.response()
            except web.HTTPException as error:
                if error.status < 400:
                    raise
                response = _explain(request, error, forwarded).response()
            except PASSING as error:
                response = unavailable(str(error)).response()
            except Exception:
                _log_failure(request)
                response = Problem(500, "an unexpected error; the worker's log has the details").response()
            if _SECURED not in response.headers and not response.prepared:
                secure(response)
            return response

        return answer

    return around


async def _to_its_end(change: Awaitable[web.StreamResponse]) -> web.StreamResponse:
    """A change goes on although its client goes away; a read, and what waits for its sake, is cancelled with it."""
    going_on = asyncio.ensure_future(change)
    _changes.add(going_on)  # the loop itself would let go of it
    going_on.add_done_callback(_changes.discard)
    try:
        return await asyncio.shield(going_on)
    except asyncio.CancelledError:
        going_on.add_done_callback(_log_abandoned)
        raise


def _log_abandoned(change: asyncio.Future[web.StreamResponse]) -> None:
    """Say what made a change fail whose client has gone; what would have been an answer is nobody's concern."""
    error = None if change.cancelled() else change.exception()
    if error is not None and not isinstance(error, (Problem, web.HTTPException, *PASSING)):
        log.error("a change failed whose client has gone", exc_info=error)


def _log_failure(request: web.Request) -> None:
    """Say that a route failed; not on which path, in which an id may be."""
    correlation_id = request.headers.get("X-Correlation-Id", "")[:NAME_CHARACTERS_MAX]
    log.exception(
        "%s %s failed",
        request.method,
        route_of(request) or "",
        extra=about(correlation_id=correlation_id or None),
    )


def route_of(request: web.Request) -> str | None:
    """The path of a request's route with names for its parts; None when none was looked for, or found."""
    match = cast(web.UrlMappingMatchInfo | None, request.match_info)
    resource = match.route.resource if match is not None else None
    return resource.canonical if resource is not None else None


def _check_token(request: web.Request, expected: bytes, detail: str) -> None:
    given = request.headers.get("Authorization", "").encode(errors="surrogateescape")
    if not hmac.compare_digest(given, expected):
        raise Problem(401, detail, headers={"WWW-Authenticate": "Bearer"})


def _explain(request: web.Request, error: web.HTTPException, forwarded: str) -> Problem:
    """The problem behind an error that aiohttp raised by itself."""
    if isinstance(error, web.HTTPMethodNotAllowed):
        allowed = ", ".join(sorted(error.allowed_methods))
        return Problem(405, f"{request.path} takes {allowed}", headers={"Allow": allowed})
    if isinstance(error, web.HTTPRequestEntityTooLarge):
        return Problem(413, f"a body has at most {BODY_BYTES_MAX} bytes")
    if isinstance(error, web.HTTPNotFound):
        if forwarded in request.headers:  # the worker that asks is of a release in which there is one
            return unavailable(f"this worker is of another version, in which there is no {request.path}; try again")
        return Problem(404, f"there is no {request.path}")
    return Problem(error.status, error.reason)
