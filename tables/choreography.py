"""What each choreographed service has to remember of an order: one table for each of them."""

import msgspec

from streams.engine.table import Table
from streams.envelope import Metadata


class Releases(msgspec.Struct, frozen=True, gc=False):
    """Stock's part once an order is cancelled: the lines whose release was refused, and how often.

    `origin` is where commands come from that no event causes, but time.
    """

    origin: Metadata
    refused: dict[int, int]


class Charge(msgspec.Struct, frozen=True, gc=False):
    """The payment's part: which lines are reserved, whether the money was asked for, how often a refund was refused."""

    reserved: tuple[int, ...] = ()
    is_asked: bool = False
    origin: Metadata = Metadata()
    refused: int = 0


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
