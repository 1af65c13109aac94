"""Text for terminals and logs in which data stays data: it cannot move the cursor, change colours or begin a line.

Control characters and those that turn the direction of writing around are shown as JSON writes them, so that JSON
stays the same JSON.
"""

from __future__ import annotations

import re

_UNSEEN = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff"
_IN_LINES = re.compile(f"[{_UNSEEN}]")
_IN_A_LINE = re.compile(rf"[{_UNSEEN}\t\n]")


def plain(text: str) -> str:
    r"""The text with what would not be seen as `\u001b`; ends of lines and tabs stay."""
    return _IN_LINES.sub(_shown, text)


def plain_line(text: str) -> str:
    """The same for what has to stay on one line."""
    return _IN_A_LINE.sub(_shown, text)


def _shown(found: re.Match[str]) -> str:
    return f"\\u{ord(found[0]):04x}"
