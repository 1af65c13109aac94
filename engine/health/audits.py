"""The last audit of each partition as a row, so that it is known after a restart and to the doctor."""

from typing import Final, Literal

import msgspec

from engine.declare.table import Table

AuditOutcome = Literal["clean", "differs", "unproven"]
CLEAN: Final = "clean"
DIFFERS: Final = "differs"
UNPROVEN: Final = "unproven"
"""No difference was found, but the log can no longer tell everything."""

LAST: Final = "last"


class LastAudit(msgspec.Struct, frozen=True):
    """How an audit of a whole partition ended; times are epoch ms.

    `sentences` are the first differences, or why it could not be proven; `differences` counts all of them.
    """

    started_ms: int
    ended_ms: int
    outcome: AuditOutcome
    records: int
    rows: int
    differences: int
    sentences: tuple[str, ...] = ()


AUDITS: Table[str, LastAudit] = Table("audits", LastAudit, help="how the last audit of each partition ended")
