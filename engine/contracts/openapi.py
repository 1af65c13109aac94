"""The HTTP contract: an OpenAPI 3.1 document of what the services' routes say of themselves."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from http import HTTPStatus
from typing import Any, Final, NamedTuple

from engine.contracts.schemas import REF_PREFIX, Schemas
from engine.declare.operation import (
    INTERNAL_PREFIX,
    JSON,
    NDJSON,
    Answer,
    Header,
    Lines,
    Operation,
    Parameter,
    implied_by,
)
from engine.declare.service import Route, Service
from engine.declare.settings import Settings
from engine.web.answers import BODY_BYTES_MAX, SAFE_METHODS, ProblemDetails

PROBLEM_JSON: Final = "application/problem+json"
_PATH_PARAMETER: Final = re.compile(r"\{([a-z_]+)\}")
# Dots within code and within words end no sentence.
_FIRST_SENTENCE: Final = re.compile(r"(?:`[^`]*`|[^`.:;]|[.:;](?=\S))+")
_MEANINGS: Final[Mapping[int, str]] = {
    401: "changing requests need the worker's token",
    403: "a page of another site may not change anything",
    404: "there is no such thing",
    409: "it does not fit what there is already",
    413: f"the body has more than {BODY_BYTES_MAX} bytes, or a record would be too large",
    421: "the worker is not known by the name in the header Host",
    422: "something in the request cannot be used; `errors` has an entry per field",
    500: "an unexpected error; the worker's log has the details",
    503: "passes by itself, as while a partition moves: try again",
    504: "what is shown would be older than the token; `lag_records` says how far it is behind",
    507: "the disk is nearly full: nothing is accepted until there is room",
}
_PROBLEM_HEADERS: Final[Mapping[int, Sequence[Header]]] = {
    401: (Header("WWW-Authenticate", "how to give the token"),),
    503: (Header("Retry-After", "seconds until it is worth another try", {"type": "integer"}, required=False),),
}


class Documented(NamedTuple):
    """A route of the contract, and the service that declares it."""

    service: Service
    route: Route
    operation: Operation

    @property
    def parameters(self) -> Sequence[Parameter]:
        """Those of the operation and of the function's decorators."""
        return (*self.operation.parameters, *implied_by(self.route.function))

    @property
    def problems(self) -> list[int]:
        """Every status of a problem that can be the answer."""
        found = {421, 500, 503, *self.operation.problems}
        found.update(status for parameter in self.parameters for status in parameter.problems)
        if self.parameters or self.operation.body is not None:
            found.add(422)
        if self.operation.body is not None:
            found.add(413)
        if self.route.method not in SAFE_METHODS:
            found.update((401, 403, 422, 507))
        return sorted(found)


def documented(services: Iterable[Service]) -> Iterator[Documented]:
    """The routes that are part of the contract, in the order in which they are declared."""
    for service in services:
        for route in service.routes:
            if isinstance(route.operation, Operation) and not route.path.startswith(INTERNAL_PREFIX):
                yield Documented(service, route, route.operation)


def openapi(services: Iterable[Service], settings: Settings) -> dict[str, Any]:
    """The document; its schemas are those of the types that routes name."""
    routes = list(documented(services))
    schemas = Schemas([ProblemDetails, *_types(routes)])
    paths: dict[str, dict[str, Any]] = {}
    for found in routes:
        paths.setdefault(found.route.path, {})[found.route.method.lower()] = _operation(found, schemas, settings)
    used = sorted({status for found in routes for status in found.problems})
    components = {
        "schemas": schemas.components,
        "responses": {_problem_name(status): _problem(status, schemas) for status in used},
        "securitySchemes": {
            "bearer": {
                "type": "http",
                "scheme": "bearer",
                "description": f"the worker's {settings.variable('api_token')}",
            }
        },
    }
    return {
        "openapi": "3.1.0",
        "jsonSchemaDialect": "https://json-schema.org/draft/2020-12/schema",
        "info": {
            "title": settings.application.heading,
            "version": settings.application.release,
            **({"summary": settings.application.summary} if settings.application.summary else {}),
            "description": "Any worker answers any request. JSON in and out; errors are problems (RFC 9457), also for "
            "unknown paths (404) and wrong methods (405, with `Allow`). Unknown fields of bodies are ignored unless a "
            "schema says otherwise. What the topics carry is in /asyncapi.json.",
        },
        "servers": [{"url": "/", "description": "the worker that this document comes from"}],
        "tags": [_tag(service) for service in _services(routes)],
        "paths": dict(sorted(paths.items())),
        "components": components,
    }


def _services(routes: Iterable[Documented]) -> list[Service]:
    return sorted({found.service.name: found.service for found in routes}.values(), key=lambda service: service.name)


def _types(routes: Iterable[Documented]) -> Iterator[Any]:
    for found in routes:
        body = found.operation.body
        if body is not None:
            yield body.type if isinstance(body, Lines) else body
        for answer in found.operation.answers.values():
            if (type_ := _answer(answer).type) is not None:
                yield type_


def _answer(answer: Any) -> Answer:
    return answer if isinstance(answer, Answer) else Answer(answer)


def _tag(service: Service) -> dict[str, str]:
    """A service by name, described by the module that declares its routes."""
    module = sys.modules[service.routes[0].function.__module__]
    return {"name": service.name, "description": _summary(inspect.getdoc(module) or service.name)}


def _operation(found: Documented, schemas: Schemas, settings: Settings) -> dict[str, Any]:
    route, operation = found.route, found.operation
    text = inspect.getdoc(route.function) or ""
    shown: dict[str, Any] = {
        "operationId": route.function.__name__,
        "tags": [found.service.name],
        "summary": _summary(text),
        "description": text,
    }
    names = _PATH_PARAMETER.findall(route.path)
    if parameters := [*map(_path_parameter, names), *map(_parameter, found.parameters)]:
        shown["parameters"] = parameters
    if operation.body is not None:
        shown["requestBody"] = _body(operation.body, schemas)
    shown["responses"] = {
        **{str(status): _response(status, _answer(answer), schemas) for status, answer in operation.answers.items()},
        **{str(status): {"$ref": f"#/components/responses/{_problem_name(status)}"} for status in found.problems},
    }
    if settings.api_token.get_secret_value() and route.method not in SAFE_METHODS:
        shown["security"] = [{"bearer": []}]
    return shown


def _summary(text: str) -> str:
    """The first sentence of a docstring, or what comes before its colon or semicolon."""
    found = _FIRST_SENTENCE.match(" ".join(text.split("\n\n")[0].split()))
    return found[0] if found else text


def _path_parameter(name: str) -> dict[str, Any]:
    return {"name": name, "in": "path", "required": True, "schema": {"type": "string", "minLength": 1}}


def _parameter(parameter: Parameter) -> dict[str, Any]:
    return {
        "name": parameter.name,
        "in": parameter.where,
        "description": parameter.help,
        "schema": dict(parameter.schema),
    }


def _body(body: Any, schemas: Schemas) -> dict[str, Any]:
    if isinstance(body, Lines):
        # OpenAPI 3.1 has no word for the schema of a line; 3.2 calls it itemSchema.
        schema = {"type": "string", "description": "newline-delimited JSON; `x-itemSchema` is that of a line"}
        return {"content": {NDJSON: {"schema": schema, "x-itemSchema": schemas.of(body.type)}}}
    schema = schemas.of(body)
    named = schemas.components[schema["$ref"].removeprefix(REF_PREFIX)]
    # An empty body stands for `{}`.
    return {"required": bool(named.get("required")), "content": {JSON: {"schema": schema}}}


def _response(status: int, answer: Answer, schemas: Schemas) -> dict[str, Any]:
    shown: dict[str, Any] = {"description": HTTPStatus(status).phrase}
    if answer.headers:
        shown["headers"] = _headers(answer.headers)
    if answer.media_type is not None:
        schema = {"type": "string"} if answer.type is None else schemas.of(answer.type)
        shown["content"] = {answer.media_type: {"schema": schema}}
    return shown


def _headers(headers: Sequence[Header]) -> dict[str, Any]:
    return {
        header.name: {"description": header.help, "required": header.required, "schema": dict(header.schema)}
        for header in headers
    }


def _problem_name(status: int) -> str:
    return HTTPStatus(status).phrase.title().replace(" ", "").replace("-", "")


def _problem(status: int, schemas: Schemas) -> dict[str, Any]:
    shown: dict[str, Any] = {"description": _MEANINGS.get(status, HTTPStatus(status).phrase)}
    if headers := _PROBLEM_HEADERS.get(status):
        shown["headers"] = _headers(headers)
    return shown | {"content": {PROBLEM_JSON: {"schema": schemas.of(ProblemDetails)}}}
