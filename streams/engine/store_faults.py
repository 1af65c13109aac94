"""Faults of stores, as health, doctor, metrics and the page show them."""

from typing import Final

from streams.engine.faults import Fault, FaultKey, Faults
from streams.engine.store import StoreDamaged, StoreError

KIND: Final = "disk"


def disk_fault_key(number: int) -> FaultKey:
    """The key of what is the matter with the store of partition `number`."""
    return KIND, number


def failed_store_key(number: int) -> FaultKey:
    """The key of what keeps the store of partition `number` from being written or opened, until it can be."""
    return KIND, number, "failed"


def damaged_store(number: int, error: StoreError) -> Fault:
    """A store that does not give back what was written to it."""
    advice = (
        "stop the worker, check the disk, move this folder away and start the worker again: "
        "it is restored from the changelog"
    )
    return Fault(KIND, f"partition {number} stands still: {error}", advice, number)


def report_failure(faults: Faults, number: int, error: BaseException) -> None:
    """Open a fault for a partition whose task was ended by its store: it goes on when the disk does."""
    found = _store_error_in(error)
    if found is not None and not isinstance(found, StoreDamaged):
        advice = "the partition goes on by itself when that is done"
        faults.report(
            failed_store_key(number), Fault(KIND, f"partition {number} stands still: {found}", advice, number)
        )


def _store_error_in(error: BaseException | None) -> StoreError | None:
    while error is not None and not isinstance(error, StoreError):
        error = error.__cause__
    return error
