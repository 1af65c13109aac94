"""Bodies of HTTP requests as pydantic models, and what becomes of a body that cannot be used."""

import hashlib
import re
from datetime import UTC, datetime
from typing import Annotated, Any, Final, TypeVar

from aiohttp import web
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    WithJsonSchema,
)
from pydantic_core import PydanticCustomError

from engine.declare.settings import Settings
from engine.declare.times import ACCEPTED, is_accepted
from engine.web.answers import ENGINE, Problem

B = TypeVar("B", bound=BaseModel)

SETTINGS: Final = "settings"
"""The settings of the application in the context of a validation."""
_DAY_AND_TIME = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}T")


def _only_text(value: Any) -> Any:
    if not isinstance(value, str) or not _DAY_AND_TIME.match(value):
        raise PydanticCustomError("time", 'a time is a string such as "2026-11-23T10:00:00Z"')
    return value


def _utc(value: datetime) -> datetime:
    try:
        time = value.astimezone(UTC)
    except OverflowError:
        time = None
    if time is None or not is_accepted(time):
        raise PydanticCustomError("time", ACCEPTED)
    return time


Id = Annotated[str, Field(min_length=1, max_length=128)]
Time = Annotated[
    AwareDatetime,
    BeforeValidator(_only_text),
    AfterValidator(_utc),
    WithJsonSchema({"type": "string", "format": "date-time"}),
]


class Body(BaseModel):
    """Base of all bodies: nothing is converted, unknown fields are ignored as in the envelope."""

    model_config = ConfigDict(strict=True, frozen=True)

    def fingerprint(self) -> str:
        """The same for the same meaning: the order of fields, white space and nulls do not count."""
        canonical = self.model_dump_json(exclude_none=True)
        return hashlib.sha256(canonical.encode()).hexdigest()


def parse(model: type[B], raw: bytes, settings: Settings) -> B:
    """Read a body; raises a 422 problem with one entry per field."""
    try:
        return model.model_validate_json(raw, context={SETTINGS: settings})
    except ValidationError as error:
        errors = field_errors(error)
        raise Problem(422, f"{len(errors)} fields cannot be used", errors=errors) from error


def field_errors(error: ValidationError) -> list[dict[str, str]]:
    """One entry per field that cannot be used; `body` stands for the whole."""
    return [
        {"field": ".".join(map(str, found["loc"])) or "body", "message": found["msg"]}
        for found in error.errors(include_url=False, include_context=False, include_input=False)
    ]


async def read_body(request: web.Request, model: type[B]) -> B:
    """The request's body, an empty one standing for `{}`; raises a 422 problem with one entry per field."""
    return parse(model, await request.read() or b"{}", request.app[ENGINE].settings)
