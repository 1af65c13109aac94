"""Which dead letters are meant: by where they come from, what went wrong, when, and how far they are."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec
from pydantic import BaseModel, ConfigDict, Field

from engine.failures.dead_letters import DISCARDED, OPEN, RESOLVED, RETRYING, DeadLetter, LetterState

STATES: Final[Mapping[str, tuple[LetterState, ...]]] = {
    "open": (OPEN, RETRYING),
    "retrying": (RETRYING,),
    "resolved": (RESOLVED,),
    "discarded": (DISCARDED,),
    "all": (OPEN, RETRYING, RESOLVED, DISCARDED),
}
"""What `state` may say, and the states that are meant by it."""

AGE_MAX_S: Final = 366 * 86_400
AGE: Final = re.compile(r"([0-9]{1,9})(s|m|h|d)")
_SECONDS: Final = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class InvalidFilter(ValueError):
    """A part of a filter that cannot be used; `field` names it."""

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


class Filters(BaseModel):
    """Which letters are meant, as people say it in a query, in a body or on the command line; all of it has to hold."""

    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")

    topic: str | None = Field(None, description="the topic of the record that failed")
    type: str | None = Field(None, description="the type of the event or command")
    error: str | None = Field(None, description="the error's type, or a part of its text in whatever case")
    agent: str | None = Field(None, description="the agent at which it failed")
    key: str | None = Field(None, description="the record's key")
    fingerprint: str | None = Field(None, description="what failed alike has the same one")
    older_than: str | None = Field(None, description="failed longer ago than this, such as 90s, 15m, 2h or 3d")
    newer_than: str | None = Field(None, description="failed not as long ago as this, such as 90s, 15m, 2h or 3d")

    def given(self) -> dict[str, str]:
        """The filters that are given, by name."""
        return {name: text for name in FILTERS if (text := getattr(self, name)) is not None}

    def of(self, states: tuple[LetterState, ...], now_ms: int) -> LetterFilter:
        """The letters in one of these states that are meant as of now; raises InvalidFilter."""
        texts = self.given()
        ages = {name: texts.pop(name, None) for name in AGES}
        for name, text in texts.items():
            if not text:
                raise InvalidFilter(name, "at least one character; leave it out to mean all")
        older_ms, newer_ms = (_age_ms(name, age) for name, age in ages.items())
        return LetterFilter(
            states=states,
            failed_before_ms=None if older_ms is None else now_ms - older_ms,
            failed_after_ms=None if newer_ms is None else now_ms - newer_ms,
            **texts,
        )


AGES: Final = ("older_than", "newer_than")
FILTERS: Final[dict[str, str]] = {name: field.description or "" for name, field in Filters.model_fields.items()}
"""What may be given, with its meaning."""


class LetterFilter(msgspec.Struct, frozen=True):
    """All that is given has to hold.

    `error` is an error's type, or a part of its text in whatever case. The bounds are epoch ms and not ages, so that
    all workers, and all pages of a list, mean the same.
    """

    states: tuple[LetterState, ...] = STATES["open"]
    topic: str | None = None
    type: str | None = None
    error: str | None = None
    agent: str | None = None
    key: str | None = None
    fingerprint: str | None = None
    failed_before_ms: int | None = None
    failed_after_ms: int | None = None

    def matches(self, letter: DeadLetter) -> bool:
        """Whether this letter is meant."""
        return (
            letter.state in self.states
            and self.topic in (None, letter.topic)
            and self.type in (None, letter.event_type)
            and self.agent in (None, letter.agent)
            and self.fingerprint in (None, letter.fingerprint)
            and (self.key is None or self.key.encode() == letter.key)
            and (self.failed_before_ms is None or letter.failed_ms < self.failed_before_ms)
            and (self.failed_after_ms is None or letter.failed_ms > self.failed_after_ms)
            and (self.error is None or _is_error(self.error, letter))
        )


def _is_error(wanted: str, letter: DeadLetter) -> bool:
    return wanted == letter.error_type or wanted.casefold() in letter.error.casefold()


def letter_filter(given: Mapping[str, str], states: tuple[LetterState, ...], now_ms: int) -> LetterFilter:
    """The letters in one of these states that texts by name mean as of now; other names are ignored.

    Raises InvalidFilter.
    """
    return Filters(**{name: given[name] for name in FILTERS if name in given}).of(states, now_ms)


def states_of(name: str) -> tuple[LetterState, ...]:
    """The states that are meant by `state`; raises InvalidFilter."""
    states = STATES.get(name)
    if states is None:
        raise InvalidFilter("state", f"one of {', '.join(STATES)}")
    return states


def parse_age(text: str) -> int:
    """Seconds of an age like `90s`, `15m`, `2h` or `3d`; raises ValueError."""
    found = AGE.fullmatch(text)
    seconds = int(found[1]) * _SECONDS[found[2]] if found else -1
    if not 0 <= seconds <= AGE_MAX_S:
        raise ValueError("an age like 90s, 15m, 2h or 3d, at most 366d")
    return seconds


def _age_ms(name: str, text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_age(text) * 1000
    except ValueError as error:
        raise InvalidFilter(name, str(error)) from error
