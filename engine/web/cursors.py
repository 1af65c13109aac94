"""Places in a list as text for URLs."""

import base64
import binascii


class InvalidCursor(ValueError):
    """The text is not a cursor of this list."""


def encode_cursor(place: bytes) -> str:
    """A place in a list as text for URLs."""
    return base64.urlsafe_b64encode(place).rstrip(b"=").decode()


def decode_cursor(cursor: str) -> bytes:
    """The place in a list; raises InvalidCursor."""
    try:
        return base64.b64decode(cursor + "=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError) as error:
        raise InvalidCursor("not a cursor of this list") from error
