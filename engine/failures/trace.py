"""Traces as text, at the cost of a look-up for what has failed in the same lines before.

Python's own formatter reads and parses the source for every trace, 0.2 ms each: too much when ten thousand records
fail in the same way.
"""

import traceback
from types import CodeType, TracebackType

PLACES_MAX = 1000
CHAIN_MAX = 20

_Place = tuple[tuple[CodeType, int], ...]
_known: dict[_Place, str] = {}


def format_trace(error: BaseException) -> str:
    """The trace of an error and of those that led to it, as `traceback.format_exception` has it."""
    if isinstance(error, BaseExceptionGroup):
        return "".join(traceback.format_exception(error))
    parts: list[str] = []
    seen: set[int] = set()
    current: BaseException | None = error
    while current is not None and id(current) not in seen and len(seen) < CHAIN_MAX:
        seen.add(id(current))
        parts.append(_frames(current.__traceback__) + _last_lines(current))
        if current.__cause__ is not None:
            current, link = current.__cause__, "The above exception was the direct cause of the following exception:"
        elif current.__context__ is not None and not current.__suppress_context__:
            current, link = current.__context__, "During handling of the above exception, another exception occurred:"
        else:
            break
        parts.append(f"\n{link}\n\n")
    return "".join(reversed(parts))


def _last_lines(error: BaseException) -> str:
    """The error's name, words and notes."""
    if isinstance(error, SyntaxError):
        return "".join(traceback.format_exception_only(error))
    kind = type(error)
    name = kind.__qualname__
    if kind.__module__ not in ("__main__", "builtins"):
        name = f"{kind.__module__}.{name}"
    try:
        words = str(error)
    except BaseException:
        words = "<exception str() failed>"
    notes = getattr(error, "__notes__", ())
    lines = [f"{name}: {words}" if words else name, *(str(note) for note in notes)]
    return "".join(f"{line}\n" for line in lines)


def _frames(trace: TracebackType | None) -> str:
    """The lines of the frames; those of one place are made once."""
    if trace is None:
        return ""
    place = _place_of(trace)
    text = _known.get(place)
    if text is None:
        if len(_known) >= PLACES_MAX:
            _known.clear()
        text = _known[place] = "Traceback (most recent call last):\n" + "".join(traceback.format_tb(trace))
    return text


def _place_of(trace: TracebackType | None) -> _Place:
    frames = []
    while trace is not None:
        frames.append((trace.tb_frame.f_code, trace.tb_lineno))
        trace = trace.tb_next
    return tuple(frames)
