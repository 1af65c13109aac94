"""Sensors: a second application on the engine, in one file.

Clients send temperatures, of which every sensor has figures. A webhook is told of a sensor that becomes too hot: once,
until it has cooled down. `faust -A examples.sensors.app worker` runs it on the embedded log, and
`python -m examples.sensors.app` has an operator's commands. Dead letters, tables, topics, rebuilds, health, metrics and
contracts are the engine's.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Annotated, Any, ClassVar, Final, Literal, TypedDict
from urllib.parse import quote, urlsplit

import aiohttp
import msgspec
from aiohttp import web
from pydantic import BeforeValidator, Field, WithJsonSchema, field_validator
from pydantic_core import PydanticCustomError

import engine
from engine import (
    DAY_MS,
    Application,
    EngineApp,
    Envelope,
    Message,
    NotRetryable,
    Partition,
    Service,
    Table,
    TimeText,
    Topic,
    Unavailable,
    UnitOfWork,
    answered,
    calling,
    engine_services,
    follow_up,
    format_timestamp,
    is_http_url,
)
from engine.web import (
    CORRELATION_ID,
    CURSOR,
    FRESHNESS,
    ID_CHARACTERS_MAX,
    IDEMPOTENCY_KEY,
    LIMIT,
    LOCATION,
    Answer,
    Body,
    Operation,
    Problem,
    Time,
    by_key,
    catch_up,
    invalid,
    json_response,
    publish_command,
    read_body,
    rows_of,
)

# ---- settings


class Settings(engine.Settings):
    """The engine's settings and those of the sensors, with the prefix SENSORS_."""

    application: ClassVar[Application] = Application("sensors", module="examples.sensors.app", packages=("examples",))

    app_id: str = Field("sensors", pattern=engine.APP_ID_PATTERN)
    data_dir: Path = Path("sensors-data")
    limit: Decimal = Field(Decimal(30), description="temperature in degrees Celsius above which a sensor is too hot")
    webhook_url: str = Field(
        "", repr=False, description="address that is told of sensors that are too hot; without it, none is"
    )
    webhook_timeout: float = Field(10.0, gt=0, description="seconds to wait for the webhook's answer")

    @field_validator("webhook_url")
    @classmethod
    def _reachable(cls, value: str) -> str:
        if value and not is_http_url(value):
            raise ValueError("not the address of a webhook; use http(s)://host[:port][/path] without ? and #")
        return value


# ---- what flows


class TakeReading(Message, frozen=True, gc=False):
    """Take a sensor's temperature into account; the envelope's time is when it was measured."""

    event_type: ClassVar[str] = "reading.take"
    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "sensor"
    aggregate_id_field: ClassVar[str | None] = "sensor_id"

    sensor_id: str
    celsius: Decimal


class ReadingTaken(Message, frozen=True, gc=False):
    """A sensor's temperature at the time of the envelope."""

    event_type: ClassVar[str] = "reading.taken"
    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "sensor"

    celsius: Decimal


class SensorOverheated(Message, frozen=True, gc=False):
    """A sensor that was not too hot before has measured more than the limit."""

    event_type: ClassVar[str] = "sensor.overheated"
    schema_version: ClassVar[int] = 1
    aggregate_type: ClassVar[str] = "sensor"

    celsius: Decimal
    limit: Decimal


READING_COMMANDS = Topic(
    "reading-commands",
    "temperatures as clients send them",
    retention_ms=7 * DAY_MS,
    strict=True,
    key="sensor id",
    carries=(TakeReading,),
)
READINGS = Topic("readings", "every temperature once, kept for ever", key="sensor id", carries=(ReadingTaken,))
ALERTS = Topic(
    "alerts",
    "sensors that became too hot",
    retention_ms=30 * DAY_MS,
    key="sensor id",
    carries=(SensorOverheated,),
)

# ---- tables


class HandledCommand(msgspec.Struct, frozen=True, gc=False):
    """A command that has had its effect, and when (milliseconds since 1970)."""

    handled_ms: int


class Watch(msgspec.Struct, frozen=True, gc=False):
    """Whether a sensor is too hot, by its newest reading."""

    measured_at: datetime
    is_hot: bool


class Figures(msgspec.Struct, frozen=True, gc=False):
    """What a sensor has measured; sums are exact."""

    latest: Decimal
    measured_at: datetime
    minimum: Decimal
    maximum: Decimal
    total: Decimal
    count: int


class Alert(msgspec.Struct, frozen=True, gc=False):
    """The last alert of a sensor: `told` is False where no webhook is set."""

    celsius: Decimal
    measured_at: datetime
    told: bool


HANDLED: Table[str, HandledCommand] = Table(
    "handled-readings",
    HandledCommand,
    help="commands that have had their effect",
    marked_at_ms=lambda mark: mark.handled_ms,
    cached=False,
)
WATCHES: Table[str, Watch] = Table("watches", Watch, help="which sensors are too hot")
FIGURES: Table[str, Figures] = Table("figures", Figures, help="what each sensor has measured")
ALERTED: Table[str, Alert] = Table("alerted", Alert, help="the last alert of each sensor")

service = Service(
    "sensors",
    tables=(HANDLED, WATCHES, FIGURES, ALERTED),
    topics=(READING_COMMANDS, READINGS, ALERTS),
    types=(TakeReading, ReadingTaken, SensorOverheated),
)

# ---- decisions

readings = service.agent("take-readings", READING_COMMANDS)


@readings.on(TakeReading)
def take(command: Envelope[TakeReading], work: UnitOfWork) -> None:
    """Take each reading once, and raise an alert when its sensor becomes too hot."""
    if work.get(HANDLED, command.event_id) is not None:
        return
    work.put(HANDLED, command.event_id, HandledCommand(work.now_ms))
    sensor_id, celsius = command.aggregate_id, command.payload.celsius
    work.send(READINGS, sensor_id, follow_up(command, ReadingTaken(celsius), step="taken", aggregate_id=sensor_id))
    before = work.get(WATCHES, sensor_id)
    if before is not None and command.timestamp < before.measured_at:
        return  # it comes late: how hot the sensor is now, another reading has said
    limit = settings_of(work).limit
    work.put(WATCHES, sensor_id, Watch(command.timestamp, celsius > limit))
    if celsius > limit and (before is None or not before.is_hot):
        alert = follow_up(command, SensorOverheated(celsius, limit), step="overheated", aggregate_id=sensor_id)
        work.send(ALERTS, sensor_id, alert)


def settings_of(work: UnitOfWork) -> Settings:
    """The settings of this application, which the engine carries without knowing them."""
    assert isinstance(work.settings, Settings)
    return work.settings


# ---- figures, which can be made anew from the readings

figures = service.projection("sum-readings", READINGS, FIGURES)


@figures.on(ReadingTaken)
def add(event: Envelope[ReadingTaken], work: UnitOfWork) -> None:
    """Add a reading to the figures of its sensor."""
    celsius, at, before = event.payload.celsius, event.timestamp, work.get(FIGURES, event.aggregate_id)
    if before is None:
        row = Figures(celsius, at, celsius, celsius, celsius, 1)
    else:
        is_newest = at >= before.measured_at
        row = Figures(
            celsius if is_newest else before.latest,
            at if is_newest else before.measured_at,
            min(celsius, before.minimum),
            max(celsius, before.maximum),
            celsius + before.total,
            before.count + 1,
        )
    work.put(FIGURES, event.aggregate_id, row)


# ---- the webhook, a call to the outside

TRY_AGAIN: Final = frozenset({408, 425, 429})


class WebhookRefused(NotRetryable):
    """The webhook answered that it does not take the alert: it is a dead letter, to be retried when that is mended."""


@asynccontextmanager
async def open_client(settings: Settings) -> AsyncIterator[aiohttp.ClientSession]:
    """Keep a client with its connections open while the agent runs."""
    connector = aiohttp.TCPConnector(limit=settings.outside_calls_max)
    timeout = aiohttp.ClientTimeout(total=settings.webhook_timeout)
    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as client:
        yield client


alerts = service.agent("send-alerts", ALERTS, opens=open_client)


@alerts.call
def call_webhook(
    client: aiohttp.ClientSession, event: Envelope[SensorOverheated], work: UnitOfWork
) -> Coroutine[Any, Any, bool] | None:
    """The call that an alert needs; none where no webhook is set."""
    url = settings_of(work).webhook_url
    return tell(client, url, event) if url else None


async def tell(client: aiohttp.ClientSession, url: str, event: Envelope[SensorOverheated]) -> bool:
    """Tell the webhook; raises Unavailable when it is to be tried again. The same alert always has the same key."""
    body = {
        "sensor_id": event.aggregate_id,
        "celsius": plain(event.payload.celsius),
        "limit": plain(event.payload.limit),
        "at": format_timestamp(event.timestamp),
    }
    host = urlsplit(url).hostname or ""
    with calling("POST webhook", {"http.request.method": "POST", "server.address": host}) as trace:
        try:
            headers = {"Idempotency-Key": event.event_id, **trace}
            async with client.post(url, json=body, headers=headers, allow_redirects=False) as answer:
                status = answer.status
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"the webhook at {host} does not answer: {type(error).__name__}") from error
        answered(status)
    if status in TRY_AGAIN or status >= 500:
        raise Unavailable(f"the webhook at {host} answers {status}")
    if not 200 <= status < 300:
        raise WebhookRefused(f"the webhook at {host} answers {status}; check SENSORS_WEBHOOK_URL")
    return True


@alerts.on(SensorOverheated)
def note(event: Envelope[SensorOverheated], work: UnitOfWork) -> None:
    """Tell the webhook of a sensor that became too hot, and note that it was told."""
    work.put(ALERTED, event.aggregate_id, Alert(event.payload.celsius, event.timestamp, work.outcome is True))


# ---- HTTP

DECIMALS_MAX: Final = 6
_NUMBER = re.compile(r"-?[0-9]{1,6}(\.[0-9]{1,6})?")
COLDEST, HOTTEST = Decimal("-273.15"), Decimal(999_999)


def _celsius(value: Any) -> Decimal:
    if not isinstance(value, str) or not _NUMBER.fullmatch(value):
        raise PydanticCustomError("celsius", 'a temperature is a decimal string such as "21.5"')
    if not COLDEST <= Decimal(value) <= HOTTEST:
        raise PydanticCustomError("celsius", f"a temperature is from {COLDEST} to {HOTTEST} degrees Celsius")
    return Decimal(value) + 0  # there is no -0


class ReadingBody(Body):
    """A temperature in degrees Celsius; `at` is when it was measured, by default now."""

    celsius: Annotated[
        Decimal, BeforeValidator(_celsius), WithJsonSchema({"type": "string", "pattern": f"^{_NUMBER.pattern}$"})
    ]
    at: Annotated[Time | None, Field(strict=False)] = None


class Accepted(TypedDict):
    """A reading that is on its way; the token stands for it."""

    sensor_id: str
    status: Literal["processing"]
    token: str


class SensorView(TypedDict):
    """A sensor in figures, temperatures in degrees Celsius; `mean` is rounded to 6 decimals, the others are exact."""

    sensor_id: str
    latest: str
    measured_at: TimeText
    minimum: str
    maximum: str
    mean: str
    count: int


class SensorList(TypedDict):
    """A page of sensors."""

    items: list[SensorView]
    next_cursor: str | None


# The steps of a reading on its way into the figures.
FIGURES_PATH = (readings, figures)


@service.route(
    "POST",
    "/sensors/{sensor_id}/readings",
    Operation({202: Answer(Accepted, (LOCATION,))}, (IDEMPOTENCY_KEY, CORRELATION_ID), ReadingBody),
)
async def post_reading(request: web.Request) -> web.StreamResponse:
    """Send a temperature: 202 with a token. The same `Idempotency-Key` makes it the same reading, which counts once."""
    sensor_id = request.match_info["sensor_id"]
    if len(sensor_id) > ID_CHARACTERS_MAX:
        raise invalid("sensor_id", f"1 to {ID_CHARACTERS_MAX} characters")
    body = await read_body(request, ReadingBody)
    command = TakeReading(sensor_id, body.celsius)
    token = await publish_command(request, READING_COMMANDS, command, occurred_at=body.at)
    answer = Accepted(sensor_id=sensor_id, status="processing", token=token)
    return json_response(answer, 202, {"Location": f"/sensors/{quote(sensor_id, safe='')}"})


@service.route("GET", "/sensors/{sensor_id}", Operation({200: SensorView}, problems=(404,)))
@by_key("sensor_id", FIGURES_PATH)
async def get_sensor(request: web.Request, partition: Partition) -> web.StreamResponse:
    """A sensor in figures; with `?after=TOKEN` never older than it. 404 for one that has sent nothing."""
    sensor_id = request.match_info["sensor_id"]
    row = partition.read(FIGURES, sensor_id)
    if row is None:
        raise Problem(404, f"there is no sensor {sensor_id}")
    return json_response(view(sensor_id, row))


@service.route("GET", "/sensors", Operation({200: SensorList}, (LIMIT, CURSOR, *FRESHNESS)))
async def list_sensors(request: web.Request) -> web.StreamResponse:
    """All sensors, `{items, next_cursor}`, partition after partition, by id."""
    await catch_up(request, FIGURES_PATH, None)
    items, next_cursor = await rows_of(request, FIGURES)
    views = [view(item.key, FIGURES.decode_row(item.row)) for item in items]
    return json_response(SensorList(items=views, next_cursor=next_cursor))


def view(sensor_id: str, row: Figures) -> SensorView:
    """A sensor as the web view shows it."""
    return {
        "sensor_id": sensor_id,
        "latest": plain(row.latest),
        "measured_at": format_timestamp(row.measured_at),
        "minimum": plain(row.minimum),
        "maximum": plain(row.maximum),
        "mean": plain(round(row.total / row.count, DECIMALS_MAX)),
        "count": row.count,
    }


def plain(number: Decimal) -> str:
    """A decimal without an exponent, and without zeros that say nothing."""
    text = f"{number + 0:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


# ---- the application


def create_app(settings: engine.Settings) -> EngineApp:
    """Compose the application; may be called several times in a process."""
    return engine.create_app(settings, (*engine_services(), service))


def __getattr__(name: str) -> EngineApp:
    """`app`, made from the environment when `faust -A examples.sensors.app` asks for it: importing makes none."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    app = globals()["app"] = engine.app_from_environment(Settings, create_app)
    return app


if __name__ == "__main__":
    from engine.cli import Program, command_line

    command_line(Program(Settings, create_app, topic=READINGS.name), "Sensors: temperatures, and which are too high.")()
