"""One finding of the doctor, and how it names many things."""

from collections.abc import Iterable
from typing import Final

import msgspec

SHOWN_MAX: Final = 5


class Check(msgspec.Struct, frozen=True):
    """What was looked at and found; `advice` says what to do when it is not `ok`, or what could be better."""

    check: str
    ok: bool
    detail: str
    advice: str | None = None


def some(names: Iterable[str]) -> str:
    """The first names, and how many there are beside them."""
    listed = sorted(names)
    more = f" and {len(listed) - SHOWN_MAX} more" if len(listed) > SHOWN_MAX else ""
    return ", ".join(listed[:SHOWN_MAX]) + more
