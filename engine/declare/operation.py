"""What a route says of itself for the published contract: its answers, parameters, body and problems."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal

import msgspec

JSON: Final = "application/json"
NDJSON: Final = "application/x-ndjson"

INTERNAL_PREFIX: Final = "/internal/"
"""Where workers ask each other: no part of the contract, whatever is declared there."""

Schema = Mapping[str, Any]


class Parameter(msgspec.Struct, frozen=True):
    """A parameter of a request; one that cannot be used is a 422, `problems` are those that may come besides."""

    name: str
    help: str
    schema: Schema = msgspec.field(default_factory=lambda: {"type": "string"})
    where: Literal["query", "header"] = "query"
    problems: Sequence[int] = ()


class Header(msgspec.Struct, frozen=True):
    """A header of an answer, which has it always when it is `required`."""

    name: str
    help: str
    schema: Schema = msgspec.field(default_factory=lambda: {"type": "string"})
    required: bool = True


class Answer(msgspec.Struct, frozen=True):
    """An answer that is no problem; `type` is what its JSON is made of, None for a body that is no JSON or empty."""

    type: Any = None
    headers: Sequence[Header] = ()
    media_type: str | None = JSON


class Lines(msgspec.Struct, frozen=True):
    """A body of newline-delimited JSON; each line is one of these."""

    type: Any


class Operation(msgspec.Struct, frozen=True):
    """A route in the published contract; its words are the docstring of the route's function.

    `answers` are those that are no problems, by status: an `Answer`, or just the type of its JSON. `body` is the type
    of the request's JSON, or `Lines` of it. `problems` are the statuses of problems that the route raises by itself;
    what can happen to every route, or follows from parameters and body, goes without saying.
    """

    answers: Mapping[int, Any]
    parameters: Sequence[Parameter] = ()
    body: Any = None
    problems: Sequence[int] = ()


class Undocumented(msgspec.Struct, frozen=True):
    """Says that a route is no part of the contract, and why."""

    reason: str


_IMPLIED: Final = "__implied_parameters__"
F = Callable[..., Any]


def implies(function: F, parameters: Sequence[Parameter]) -> None:
    """Note on a decorated function which parameters its decorator reads, so that routes need not repeat them."""
    vars(function)[_IMPLIED] = (*implied_by(function), *parameters)


def implied_by(function: F) -> Sequence[Parameter]:
    """The parameters that decorators of the function read."""
    found: Sequence[Parameter] = vars(function).get(_IMPLIED, ())
    return found


LOCATION: Final = Header("Location", "where what the request is about can be read")
