"""docs/settings.md, made from the settings classes: names, defaults, ranges and descriptions."""

from __future__ import annotations

import re
from typing import Any, Literal, get_args, get_origin

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from engine.declare import settings as engine_settings
from streams.settings import Settings

HEAD = """# Settings

<!-- Made from the settings classes by `make docs`; change the descriptions there. -->

Environment variables, or the same names in a `.env` file. A worker that is given a value it cannot use refuses to start
and names what is allowed. Times are seconds, sizes are bytes. `orders doctor` names variables with the prefix `ORDERS_`
that are no settings.
"""
TAIL = """
## OpenTelemetry

`OTEL_EXPORTER_OTLP_ENDPOINT` and the other `OTEL_...` variables are OpenTelemetry's own; they are read from the
environment, not from `.env`. With an endpoint, an order is one trace from the request to the mail
([tracing-and-logs.md](tracing-and-logs.md)).
"""
COLUMNS = "| name | default | allowed | meaning |\n|---|---|---|---|\n"


def document() -> str:
    """The text of docs/settings.md."""
    of_engine = list(engine_settings.Settings.model_fields)
    of_shop = [name for name in Settings.model_fields if name not in of_engine]
    engine = section("Of every application", "engine/declare/settings.py", of_engine)
    shop = section("Of the shop", "streams/settings.py", of_shop)
    return HEAD + engine + shop + TAIL


def section(title: str, path: str, names: list[str]) -> str:
    """A heading and a table of the settings that one class declares."""
    return f"\n## {title}\n\nDeclared in `{path}`.\n\n{COLUMNS}" + "".join(map(row, names))


def row(name: str) -> str:
    """One setting as a line of its table."""
    field = Settings.model_fields[name]
    meaning = re.sub("`([a-z_]+)`", with_prefix, field.description or "")
    cells = (f"`{Settings.variable(name)}`", default(field), allowed(field), meaning)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def with_prefix(found: re.Match[str]) -> str:
    """The variable of a setting that a description names in backticks; other words stay as they are."""
    return f"`{Settings.variable(found[1])}`" if found[1] in Settings.model_fields else found[0]


def default(field: FieldInfo) -> str:
    """The default as it would be set; nothing for an empty one."""
    value: Any = field.default
    if isinstance(value, SecretStr):
        value = value.get_secret_value()
    if isinstance(value, bool):
        value = str(value).lower()
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return "" if value is None or value == "" else f"`{value}`"


def allowed(field: FieldInfo) -> str:
    """The values that a setting may have, as far as its type says so: a range, or a list of words."""
    if get_origin(field.annotation) is Literal:
        return ", ".join(f"`{word}`" for word in get_args(field.annotation))
    limits = {sign: bound for rule in field.metadata for sign in ("ge", "gt", "le")
              if (bound := getattr(rule, sign, None)) is not None}  # fmt: skip
    if "ge" in limits and "le" in limits:
        return f"{limits['ge']} to {limits['le']}"
    words = {"ge": "at least", "gt": "above", "le": "at most"}
    return ", ".join(f"{words[sign]} {bound}" for sign, bound in limits.items())
