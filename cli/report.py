"""The closing summary of an import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from cli.order_history import ImportSummary
from cli.sums import Reconciliation, lines_of


@dataclass
class Outcome:
    """What became of the commands of a file.

    `cancelled` counts the file's cancellations, `cancelled_before` those whose order was cancelled otherwise before.
    `confirmed`, `cancelled_by_saga` (by reason) and `pending` are the other orders that were placed. `unknown` commands
    were accepted, but have left no trace. `stocked` counts products. `is_stalled`: it was not waited for the end.
    """

    stocked: int = 0
    placed: int = 0
    confirmed: int = 0
    cancelled: int = 0
    cancelled_by_saga: Counter[str] = field(default_factory=Counter)
    pending: int = 0
    already_there: int = 0
    cancelled_before: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    unknown: int = 0
    is_stalled: bool = False

    @property
    def is_change(self) -> bool:
        """Whether the import has changed anything."""
        return bool(self.stocked or self.placed or self.cancelled)


@dataclass(frozen=True)
class ImportReport:
    """The closing summary of an import."""

    file: str
    summary: ImportSummary
    outcome: Outcome
    sums: Reconciliation
    seconds: float

    def is_complete(self) -> bool:
        """Whether all that the file asks for is done and adds up; lines and invoices that it rules out do not count.

        Sums that differ while other orders are on their way say nothing.
        """
        outcome, sums = self.outcome, self.sums
        is_done = not outcome.refused and not outcome.unknown and not outcome.is_stalled
        return is_done and (sums.adds_up or not sums.is_settled)

    def text(self) -> str:
        """The summary as lines for people."""
        outcome = self.outcome
        done = outcome.placed + outcome.cancelled + outcome.already_there
        rate = f", {done / self.seconds:,.0f} a second" if self.seconds > 0 else ""
        lines = [f"{self.file}: {self.summary.lines_read:,} lines in {self.seconds:.1f} s{rate}"]
        lines += [f"  {name:<40}{count:>9,}" for name, count in self._rows()]
        if not outcome.is_change and not outcome.refused and not outcome.unknown:
            lines.append("Everything was already there; nothing has changed.")
        lines += lines_of(self.sums)
        if outcome.unknown:
            lines.append("What became of some is not known: look at `orders tail dead-letters --from-beginning`.")
        if outcome.is_stalled:
            lines.append(
                "Not all sagas have ended, and nothing moves any more: is the payment gateway away? They go on"
            )
            lines.append("by themselves when it is back; the same command again then tells whether everything adds up.")
        return "\n".join(lines)

    def _rows(self) -> Iterator[tuple[str, int]]:
        summary, outcome = self.summary, self.outcome
        yield "products stocked", outcome.stocked
        yield "orders placed", outcome.placed
        yield from _unless_none("  confirmed", outcome.confirmed)
        yield from _unless_none("  cancelled by the customer", outcome.cancelled)
        yield from _with_reasons("  cancelled by their saga", outcome.cancelled_by_saga)
        yield from _unless_none("  still pending", outcome.pending)
        yield "already there", outcome.already_there
        yield from _unless_none("cancellations of cancelled orders", outcome.cancelled_before)
        yield from _with_reasons("refused by the system", outcome.refused)
        yield from _unless_none("without a trace", outcome.unknown)
        yield from _with_reasons("lines rejected", summary.lines_rejected)
        yield from _with_reasons("invoices rejected", summary.invoices_rejected)


def _unless_none(name: str, count: int) -> list[tuple[str, int]]:
    return [(name, count)] if count else []


def _with_reasons(name: str, reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    if not reasons:
        return []
    indent = " " * (len(name) - len(name.lstrip()) + 2)
    listed = [(f"{indent}{reason.replace('_', ' ')}", count) for reason, count in sorted(reasons.items())]
    return [(name, sum(reasons.values())), *listed]
