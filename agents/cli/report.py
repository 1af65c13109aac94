"""The closing summary of an import."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

from agents.domain.order_history import ImportSummary


@dataclass
class Outcome:
    """What became of the commands of a file; `unknown` ones were accepted, but have left no trace."""

    placed: int = 0
    cancelled: int = 0
    already_there: int = 0
    refused: Counter[str] = field(default_factory=Counter)
    unknown: int = 0


@dataclass(frozen=True)
class ImportReport:
    """The closing summary of an import."""

    file: str
    summary: ImportSummary
    outcome: Outcome
    seconds: float

    def is_complete(self) -> bool:
        """Whether all that the file asks for is done; lines and invoices that it rules out do not count."""
        return not self.outcome.refused and not self.outcome.unknown

    def text(self) -> str:
        """The summary as lines for people."""
        summary, outcome = self.summary, self.outcome
        done = outcome.placed + outcome.cancelled + outcome.already_there
        rate = f", {done / self.seconds:,.0f} a second" if self.seconds > 0 else ""
        rows: list[tuple[str, int]] = [("orders placed", outcome.placed), ("orders cancelled", outcome.cancelled)]
        rows.append(("already there", outcome.already_there))
        rows += _with_reasons("refused by the system", outcome.refused)
        rows += [("without a trace", outcome.unknown)] if outcome.unknown else []
        rows += _with_reasons("lines rejected", summary.lines_rejected)
        rows += _with_reasons("invoices rejected", summary.invoices_rejected)
        lines = [f"{self.file}: {summary.lines_read:,} lines in {self.seconds:.1f} s{rate}"]
        lines += [f"  {name:<32}{count:>9,}" for name, count in rows]
        if not outcome.placed and not outcome.cancelled and self.is_complete():
            lines.append("Everything was already there; nothing has changed.")
        if outcome.unknown:
            lines.append("What became of some is not known: look at `orders tail dead-letters --from-beginning`.")
        return "\n".join(lines)


def _with_reasons(name: str, reasons: Mapping[str, int]) -> list[tuple[str, int]]:
    if not reasons:
        return []
    listed = [(f"  {reason.replace('_', ' ')}", count) for reason, count in sorted(reasons.items())]
    return [(name, sum(reasons.values())), *listed]
