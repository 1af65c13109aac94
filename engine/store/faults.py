"""Faults of stores, as health, doctor, metrics and the page show them."""

from pathlib import Path
from typing import Final

from engine.health.faults import Fault, FaultKey, Faults
from engine.store.store import StoreDamaged, StoreError

KIND: Final = "disk"


def disk_fault_key(number: int) -> FaultKey:
    """The key of what is the matter with the store of partition `number`, until it is restored."""
    return KIND, number


def built_anew(number: int, damage: str) -> Fault:
    """A damaged store that is being built anew."""
    advice = "it is built anew from its changelog by itself; check the disk"
    return Fault(KIND, f"partition {number} stands still: {damage}", advice, number)


def not_built_anew(number: int, path: Path, damage: str, refusal: str) -> Fault:
    """A damaged store whose changelogs have less than it had."""
    advice = (
        "stop the worker and put a backup of its data folder in the place of this one; "
        f"to go on with what the changelog has instead, and without the rest, move {path} away"
    )
    return Fault(KIND, f"{refusal}; and its store cannot help, {damage}", advice, number)


def report_failure(faults: Faults, number: int, error: BaseException) -> None:
    """Open a fault for a partition whose task was ended by its store: it goes on when the disk does."""
    found = _store_error_in(error)
    if found is not None and not isinstance(found, StoreDamaged):
        advice = "the partition goes on by itself when that is done"
        faults.report(disk_fault_key(number), Fault(KIND, f"partition {number} stands still: {found}", advice, number))


def _store_error_in(error: BaseException | None) -> StoreError | None:
    while error is not None and not isinstance(error, StoreError):
        error = error.__cause__
    return error
