"""The audits of one worker: begun, carried out one partition after the other, and what they came to."""

from __future__ import annotations

import asyncio
import logging
import time
from pathlib import Path
from typing import Final, Literal

import msgspec
from aiohttp import web

from engine import format_timestamp
from engine.inspection import (
    AUDITS,
    CLEAN,
    DIFFERS,
    INFRASTRUCTURE_ERRORS,
    LAST,
    UNPROVEN,
    AuditOutcome,
    Engine,
    Fault,
    LastAudit,
    PartitionTask,
    TransportError,
)
from tables.audit.findings import Difference
from tables.audit.run import AuditRun
from tables.audit.times import time_of_ms

log = logging.getLogger(__name__)

FAULT_KIND: Final = "audit"
FAULT_ADVICE: Final = (
    "see what differs with `orders audit`, and docs/operations.md for what each difference means; "
    "an audit without differences ends this"
)
SENTENCES_KEPT: Final = 5

AuditState = Literal["running", "clean", "differs", "unproven", "failed"]


class AuditReport(msgspec.Struct, frozen=True):
    """How far the audit of a partition is, and what it has found.

    `state` is `running`, `clean`, `differs`, `unproven` (nothing differs, but `unproven` says what the log can no
    longer tell) or `failed` (with `error`). `records_done` of `records_total` counts offsets. `difference_count` counts
    all differences, of which `differences` has the first ones.
    """

    partition: int
    id: str
    state: AuditState
    phase: str
    started_at: str
    ended_at: str | None
    records_done: int
    records_total: int
    records: int
    rows: int
    difference_count: int
    differences: list[Difference]
    unproven: list[str]
    error: str | None


class _Audit:
    """An audit with the state it is in."""

    def __init__(self, run: AuditRun) -> None:
        self.run = run
        self.state: AuditState = "running"
        self.ended_ms: int | None = None
        self.error: str | None = None

    def end(self, state: AuditState, error: str | None = None) -> None:
        self.state, self.error, self.ended_ms = state, error, int(time.time() * 1000)

    def report(self) -> AuditReport:
        run, found = self.run, self.run.findings
        return AuditReport(
            partition=found.partition,
            id=run.id,
            state=self.state,
            phase=run.phase if self.state == "running" else "",
            started_at=format_timestamp(time_of_ms(run.started_ms)),
            ended_at=None if self.ended_ms is None else format_timestamp(time_of_ms(self.ended_ms)),
            records_done=run.done,
            records_total=run.total,
            records=found.records,
            rows=found.rows,
            difference_count=found.count,
            differences=list(found.differences),
            unproven=list(found.unproven),
            error=self.error,
        )


class Audits:
    """The audits of the partitions of one worker, the last one of each."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._audits: dict[int, _Audit] = {}
        self._turns = asyncio.Lock()  # one at a time: memory and the loop's time are bounded

    def begin(self, task: PartitionTask) -> AuditReport:
        """Begin the audit of an owned partition, unless one is under way; how it stands."""
        audit = self._audits.get(task.number)
        if audit is None or audit.state != "running":
            audit = self._audits[task.number] = _Audit(AuditRun(self._engine, task, self._scratch_folder()))
            task.long_reads.begin(self._carry_out(audit, task), f"audit of partition {task.number}")
        return audit.report()

    def report(self, number: int) -> AuditReport | None:
        """How the last audit of a partition stands; None when this worker made none."""
        audit = self._audits.get(number)
        return None if audit is None else audit.report()

    def _scratch_folder(self) -> Path:
        return self._engine.store_path(0).parent.parent / "audit"

    async def _carry_out(self, audit: _Audit, task: PartitionTask) -> None:
        try:
            async with self._turns:
                await audit.run.run()
        except asyncio.CancelledError:
            audit.end("failed", f"partition {task.number} moved to another worker meanwhile; audit it again")
            raise
        except (TransportError, *INFRASTRUCTURE_ERRORS) as error:
            audit.end("failed", str(error))
        except Exception as error:
            log.exception("the audit of partition %d failed", task.number)
            audit.end("failed", f"{type(error).__name__}: {error}; the worker's log has the details")
        else:
            self._keep(audit, task)

    def _keep(self, audit: _Audit, task: PartitionTask) -> None:
        """Keep how an audit ended; with differences it is a fault until the next one has none."""
        found = audit.run.findings
        outcome: AuditOutcome = DIFFERS if found.count else UNPROVEN if found.unproven else CLEAN
        audit.end(outcome)
        sentences = [difference.sentence for difference in found.differences] or found.unproven
        last = LastAudit(
            audit.run.started_ms,
            audit.ended_ms or 0,
            outcome,
            found.records,
            found.rows,
            found.count,
            tuple(sentences[:SENTENCES_KEPT]),
        )
        work = task.work.open()
        work.put(AUDITS, LAST, last)
        work.release()
        task.work.commit_soon()
        report_fault(self._engine, task.number, last)


def report_fault(engine: Engine, number: int, last: LastAudit) -> None:
    """Open the fault of a partition whose last audit found differences; close it when the last one was clean."""
    key = FAULT_KIND, number
    if last.outcome == DIFFERS:
        others = f" and {last.differences - 1:,} more" if last.differences > 1 else ""
        detail = f"the audit of partition {number} found rows and events that differ: {last.sentences[0]}{others}"
        engine.faults.report(key, Fault(FAULT_KIND, detail, FAULT_ADVICE, number))
    elif last.outcome == CLEAN:
        engine.faults.clear(key)


AUDITS_KEY: web.AppKey[Audits] = web.AppKey("audits", Audits)
