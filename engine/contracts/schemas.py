"""JSON schemas (2020-12) of the code's own types: msgspec structs, TypedDicts and what else msgspec knows, and pydantic
models.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any, Final

import msgspec
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

Schema = dict[str, Any]

REF_PREFIX: Final = "#/components/schemas/"


class Schemas:
    """Schemas of types that may refer to each other: one for each that is given; named ones are in `components`."""

    def __init__(self, types: Sequence[Any]) -> None:
        distinct = list({_key(found): found for found in types}.values())
        models = [found for found in distinct if _is_model(found)]
        others = [found for found in distinct if not _is_model(found)]
        schemas, components = msgspec.json.schema_components(others, ref_template=f"{REF_PREFIX}{{name}}")
        self._schemas = {_key(found): _tidy(schema) for found, schema in zip(others, schemas, strict=True)}
        of_models, definitions = models_json_schema(
            [(model, "validation") for model in models], ref_template=f"{REF_PREFIX}{{model}}"
        )
        self._schemas |= {_key(model): _tidy(of_models[model, "validation"]) for model in models}
        named = {_tidy_name(name): _tidy(schema) for name, schema in components.items()}
        for name, schema in definitions.get("$defs", {}).items():
            if name in named:
                raise ValueError(f"a pydantic model and another type are both called {name}: rename one of them")
            named[name] = _tidy(schema)
        self.components = dict(sorted(named.items()))

    def of(self, found: Any) -> Schema:
        """The schema of a type that was given, most often a reference."""
        schema: Schema = self._schemas[_key(found)]
        return schema


def resolved(schema: Schema, components: dict[str, Schema]) -> Schema:
    """The same schema without references and words, to be compared with others; types must not contain themselves."""
    if "$ref" in schema:
        return resolved(components[schema["$ref"].removeprefix(REF_PREFIX)], components)
    return {
        name: (
            {key: resolved(member, components) for key, member in value.items()}
            if name == "properties"
            else _resolved_value(value, components)
        )
        for name, value in schema.items()
        if name not in ("title", "description", "default", "examples")
    }


def _resolved_value(value: Any, components: dict[str, Schema]) -> Any:
    if isinstance(value, dict):
        return resolved(value, components)
    if isinstance(value, list):
        return [_resolved_value(member, components) for member in value]
    return value


def _is_model(found: Any) -> bool:
    return inspect.isclass(found) and issubclass(found, BaseModel)


def _key(found: Any) -> str:
    """The name of a type; those that are no classes (`list[Check]`) are equal when they are written alike."""
    return (
        f"{found.__module__}.{found.__qualname__}" if inspect.isclass(found) and not _parameters(found) else repr(found)
    )


def _parameters(found: Any) -> Any:
    return getattr(found, "__args__", ())


def _tidy_name(name: str) -> str:
    """The name of a generic struct whose parameter may be anything: `Envelope` instead of `Envelope_Raw_`."""
    return name.removesuffix("_Raw_")


def _tidy(schema: Any, *, is_property_map: bool = False) -> Any:
    """A generated schema as people would write it."""
    if isinstance(schema, list):
        return [_tidy(member) for member in schema]
    if not isinstance(schema, dict):
        return schema
    if is_property_map:
        # pydantic titles each property after its name.
        members = {name: _tidy(member) for name, member in schema.items()}
        for member in members.values():
            member.pop("title", None)
        return members
    tidy = {name: _tidy(member, is_property_map=name == "properties") for name, member in schema.items()}
    if "$ref" in tidy:
        tidy["$ref"] = _tidy_name(tidy["$ref"])
    if "anyOf" in tidy:
        # Decimals refuse JSON numbers by alternatives that no number satisfies, see streams/events/money.py.
        possible = [found for found in tidy["anyOf"] if not found.get("minimum", 0) > found.get("maximum", 0)]
        if len(possible) == 1:
            del tidy["anyOf"]
            tidy |= possible[0]
        else:
            tidy["anyOf"] = possible
    if tidy.get("format") == "decimal":
        del tidy["format"]
        tidy["pattern"] = r"^-?[0-9]+(\.[0-9]+)?$"
    if "description" in tidy:
        tidy["description"] = inspect.cleandoc(tidy["description"])
    if tidy.get("required") == []:
        del tidy["required"]
    return tidy
