"""Which changes of a contract break what others rely on: pure rules over schemas without references.

What outsiders write (commands) has to be taken as long as it was: what was valid stays valid. What they read (events)
has to be given as it was: what is valid now was valid before, and nothing that was there for sure may be missing.
Fields may be added, as unknown ones are ignored; none may go away, in either direction.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from engine.contracts.events import Contract
from engine.contracts.schemas import Schema

_UPPER_BOUNDS: Final = ("maximum", "maxLength", "maxItems")
_LOWER_BOUNDS: Final = ("minimum", "minLength", "minItems")
_KNOWN: Final = frozenset(
    (
        *("type", "properties", "required", "additionalProperties", "items", "prefixItems"),
        *("anyOf", "enum", "const", "pattern", "format"),
    )
) | {*_UPPER_BOUNDS, *_LOWER_BOUNDS}

IsRead = Callable[[str, int], bool]
"""Whether the code still reads a version of a type, by itself or with upcasters."""


def breaks(before: Mapping[str, Contract], now: Mapping[str, Contract], is_read: IsRead) -> list[str]:
    """Every incompatible change from the contracts of `before` to those of `now`, in words."""
    return [
        f"{name}: {found}" for name, old in before.items() for found in _contract(name, old, now.get(name), is_read)
    ]


def _contract(name: str, old: Contract, new: Contract | None, is_read: IsRead) -> Iterator[str]:
    if new is None:
        if old.version is None:
            yield "is gone"
        elif not is_read(name.rpartition("/")[0], old.version):
            yield "is gone, and no upcaster leads from it to a later version"
        return
    if new.kind != old.kind:
        yield f"was of the kind {old.kind} and is of the kind {new.kind}"
    if new.aggregate_type != old.aggregate_type:
        yield f"its aggregate type was {old.aggregate_type} and is {new.aggregate_type}"
    for topic, key in old.topics.items():
        if topic not in new.topics:
            yield f"is no longer in {topic}"
        elif new.topics[topic] != key:
            yield f"its key in {topic} was {key!r} and is {new.topics[topic]!r}"
    for header in old.headers:
        if header not in new.headers:
            yield f"has no longer the header {header}"
    yield from _removed(old.schema, new.schema, "$")
    if old.kind in ("command", "both"):
        yield from (f"what outsiders write is refused: {reason}" for reason in misfits(old.schema, new.schema))
    if old.kind in ("event", "both"):
        yield from (f"what others read is not what it was: {reason}" for reason in misfits(new.schema, old.schema))


def _removed(old: Schema, new: Schema, path: str) -> Iterator[str]:
    """Fields that are gone from the objects in a schema."""
    others = _alternatives(new)
    for one in _alternatives(old):
        for name, member in one.get("properties", {}).items():
            found = [other["properties"][name] for other in others if name in other.get("properties", {})]
            if found:
                yield from _removed(member, found[0], f"{path}.{name}")
            else:
                yield f"the field {path}.{name} is gone"
        for other in others:
            if isinstance(one.get("items"), dict) and isinstance(other.get("items"), dict):
                yield from _removed(one["items"], other["items"], f"{path}[]")


def misfits(value: Schema, place: Schema, path: str = "$") -> Iterator[str]:
    """Why something that is valid for `value` may not be valid for `place`; nothing when it always is.

    Raises ValueError for a keyword that these rules do not know.
    """
    for schema in (value, place):
        if unknown := schema.keys() - _KNOWN:
            raise ValueError(f"{path}: compatibility of {', '.join(sorted(unknown))} is not defined; add a rule")
    places = _alternatives(place)
    for alternative in _alternatives(value):
        reasons = [list(_misfits(alternative, candidate, path)) for candidate in places]
        if all(reasons):
            # The alternative that comes closest explains best.
            yield from min(reasons, key=len) if len(places) == 1 else _closest(alternative, places, reasons, path)


def _closest(alternative: Schema, places: list[Schema], reasons: list[list[str]], path: str) -> list[str]:
    same = [found for place, found in zip(places, reasons, strict=True) if place.get("type") == alternative.get("type")]
    return same[0] if same else [f"{path} may be {_words(alternative)}"]


def _alternatives(schema: Schema) -> list[Schema]:
    found: list[Schema] = schema.get("anyOf", [schema])
    return found


def _misfits(value: Schema, place: Schema, path: str) -> Iterator[str]:
    """As `misfits`, of schemas that are no alternatives."""
    values, allowed = _listed(value), _listed(place)
    if allowed is not None:
        for found in values or ():
            if found not in allowed:
                yield f"{path} may be {found!r}"
        if values is None:
            yield f"{path} may be more than {', '.join(map(repr, allowed))}"
        return
    if values is None and not _type_fits(value.get("type"), place.get("type")):
        yield f"{path} may be {_words(value)}, not {_words(place)}"
        return
    yield from _bounds(value, place, path)
    for word in ("pattern", "format"):
        if word in place and value.get(word) != place[word]:
            yield f"{path} may have another {word} than {place[word]}"
    yield from _object(value, place, path)
    yield from _array(value, place, path)


def _object(value: Schema, place: Schema, path: str) -> Iterator[str]:
    has, takes = value.get("properties", {}), place.get("properties", {})
    for name in place.get("required", ()):
        if name not in value.get("required", ()):
            yield f"{path}.{name} may be missing"
    for name, member in has.items():
        if name in takes:
            yield from misfits(member, takes[name], f"{path}.{name}")
        elif place.get("additionalProperties") is False:
            yield f"{path}.{name} is not allowed"
    if isinstance(members := place.get("additionalProperties"), dict):
        yield from misfits(value.get("additionalProperties") or {}, members, f"{path}.*")


def _array(value: Schema, place: Schema, path: str) -> Iterator[str]:
    """Items that are alike, or a fixed number of them that are not."""
    ours, theirs = value.get("prefixItems", []), place.get("prefixItems", [])
    if len(ours) != len(theirs):
        yield f"{path} may have {len(ours)} items, not {len(theirs)}"
    for index, (one, other) in enumerate(zip(ours, theirs, strict=False)):
        yield from misfits(one, other, f"{path}[{index}]")
    if isinstance(items := place.get("items"), dict):
        yield from misfits(value.get("items") or {}, items, f"{path}[]")


def _bounds(value: Schema, place: Schema, path: str) -> Iterator[str]:
    for word in _UPPER_BOUNDS:
        if word in place and value.get(word, float("inf")) > place[word]:
            yield f"{path} may be above {word} {place[word]}"
    for word in _LOWER_BOUNDS:
        if word in place and value.get(word, float("-inf")) < place[word]:
            yield f"{path} may be below {word} {place[word]}"


def _listed(schema: Schema) -> list[Any] | None:
    if "const" in schema:
        return [schema["const"]]
    listed: list[Any] | None = schema.get("enum")
    return listed


def _type_fits(value: str | None, place: str | None) -> bool:
    return place in (None, value) or (value == "integer" and place == "number")


def _words(schema: Schema) -> str:
    return str(schema.get("type") or schema.get("enum") or schema.get("const") or "anything")
