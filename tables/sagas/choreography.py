"""What each choreographed service has to remember of an order: one table for each of them."""

import msgspec

from engine import Metadata, Table


class Releases(msgspec.Struct, frozen=True, gc=False):
    """Stock's part once an order is cancelled: the lines whose release was refused, and how often.

    `asked` are those of them that were asked for again. `origin` is where commands come from that time causes.
    """

    origin: Metadata
    refused: dict[int, int]
    asked: tuple[int, ...] = ()


class Charge(msgspec.Struct, frozen=True, gc=False):
    """The payment's part: which lines are reserved, whether the money was asked for, and for it to be given back.

    `refused` counts refused refunds. `origin` is where refunds come from that time causes.
    """

    reserved: tuple[int, ...] = ()
    is_asked: bool = False
    is_refund_asked: bool = False
    refused: int = 0
    origin: Metadata = Metadata()


class Deadline(msgspec.Struct, frozen=True, gc=False):
    """The order's part: by when somebody has to answer. Times are production time, epoch ms.

    `origin` names the event the order began with, `timer_ms` is when its timer wakes it.
    """

    origin: Metadata
    placed_ms: int
    due_ms: int
    timer_ms: int


RELEASES: Table[str, Releases] = Table(
    "choreographed-releases", Releases, help="lines whose stock could not be released yet, by order id"
)
CHARGES: Table[str, Charge] = Table(
    "choreographed-charges", Charge, help="what choreographed payments wait for, by order id"
)
DEADLINES: Table[str, Deadline] = Table(
    "choreographed-deadlines", Deadline, help="by when choreographed orders want an answer, by order id"
)
