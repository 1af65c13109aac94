"""One finding of the doctor."""

import msgspec


class Check(msgspec.Struct, frozen=True):
    """What was looked at and found; `advice` says what to do when it is not `ok`, or what could be better."""

    check: str
    ok: bool
    detail: str
    advice: str | None = None
