"""Parameters that routes read and the published contract shows, declared once for both."""

from __future__ import annotations

from typing import Final

from aiohttp import web

from engine.declare.operation import Parameter
from engine.web.answers import DURATION, duration_parameter, int_parameter


class IntParameter(Parameter, frozen=True, kw_only=True):
    """A whole number of the query."""

    default: int
    minimum: int
    maximum: int

    def read(self, request: web.Request) -> int:
        """The number, or the default; raises a 422 problem."""
        return int_parameter(request, self.name, self.default, self.minimum, self.maximum)


def number(name: str, help: str, default: int, minimum: int, maximum: int) -> IntParameter:
    """Declare a whole number of the query that has a default."""
    schema = {"type": "integer", "minimum": minimum, "maximum": maximum, "default": default}
    return IntParameter(name, help, schema, default=default, minimum=minimum, maximum=maximum)


class OptionalInt(Parameter, frozen=True, kw_only=True):
    """A whole number of the query that may be left out."""

    minimum: int
    maximum: int

    def read(self, request: web.Request) -> int | None:
        """The number, None without it; raises a 422 problem."""
        if self.name not in request.query:
            return None
        return int_parameter(request, self.name, self.minimum, self.minimum, self.maximum)


def optional_number(name: str, help: str, minimum: int, maximum: int = 2**63 - 1) -> OptionalInt:
    """Declare a whole number of the query that may be left out."""
    schema = {"type": "integer", "minimum": minimum, "maximum": maximum, "examples": [minimum]}
    return OptionalInt(name, help, schema, minimum=minimum, maximum=maximum)


class DurationParameter(Parameter, frozen=True, kw_only=True):
    """A time of the query."""

    default_s: float

    def read(self, request: web.Request) -> float:
        """The seconds, or the default; raises a 422 problem."""
        return duration_parameter(request, self.name, self.default_s)


def duration(name: str, help: str, default_s: float) -> DurationParameter:
    """Declare a time of the query such as `2s`."""
    schema = {"type": "string", "pattern": f"^{DURATION.pattern}$", "default": f"{default_s:g}s"}
    return DurationParameter(name, help, schema, default_s=default_s)


LIMIT_MAX: Final = 1000
CURSOR: Final = Parameter("cursor", "`next_cursor` of the page before; without it the first page comes")


def limit(default: int = 20) -> IntParameter:
    """Declare `?limit=` of a list."""
    return number("limit", "how many items there are at most", default, 1, LIMIT_MAX)


LIMIT: Final = limit()
