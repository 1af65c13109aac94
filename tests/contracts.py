"""The contract documents in tests: made as a worker makes them, and held against records."""

from __future__ import annotations

import functools
import gzip
import json
from pathlib import Path
from typing import Any

import msgspec
from jsonschema import Draft7Validator, Draft202012Validator

from engine.contracts.documents import Documents
from engine.faust.app import EngineApp
from streams.app import create_app
from streams.settings import Settings

DATA = Path(__file__).parent / "data"
SNAPSHOT = Path(__file__).resolve().parents[1] / "docs" / "contracts" / "events.json"


@functools.cache
def application() -> EngineApp:
    """The whole application, not started."""
    return create_app(Settings(_env_file=None, broker="memory://"))


def documents(app: EngineApp) -> tuple[dict[str, Any], dict[str, Any]]:
    """The documents of an application, as they are served: OpenAPI and AsyncAPI."""
    made = Documents(app.engine, tuple(app.services))
    return msgspec.json.decode(made.openapi.body), msgspec.json.decode(made.asyncapi.body)


def asyncapi_validator() -> Draft7Validator:
    """The official schema of AsyncAPI 3.0.0."""
    return Draft7Validator(json.loads(gzip.decompress((DATA / "asyncapi-3.0.0.schema.json.gz").read_bytes())))


def check_message(asyncapi: dict[str, Any], message: dict[str, Any], payload: Any, headers: Any) -> None:
    """Check that value and headers of a record are what the document says of this message."""
    for schema, instance in ((message["payload"], payload), (message.get("headers", {}), headers)):
        whole = {**schema, "components": asyncapi["components"]}
        Draft202012Validator(whole, format_checker=Draft202012Validator.FORMAT_CHECKER).validate(instance)
