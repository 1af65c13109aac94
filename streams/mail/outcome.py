"""What delivering a mail comes to."""

from typing import Final, Literal

import msgspec


class Delivery(msgspec.Struct, frozen=True, gc=False):
    """`sent` means that others have taken the mail over; `undeliverable` that it will never be: `detail` says why."""

    state: Literal["sent", "undeliverable"]
    detail: str | None = None


SENT: Final = Delivery("sent")
