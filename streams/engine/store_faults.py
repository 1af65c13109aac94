"""Faults of stores, as health, doctor, metrics and the page show them."""

from typing import Final

from streams.engine.faults import Fault, FaultKey
from streams.engine.store import StoreError

KIND: Final = "disk"


def disk_fault_key(number: int) -> FaultKey:
    """The key of what is the matter with the store of partition `number`."""
    return KIND, number


def damaged_store(number: int, error: StoreError) -> Fault:
    """A store that does not give back what was written to it."""
    advice = (
        "stop the worker, check the disk, move this folder away and start the worker again: "
        "it is restored from the changelog"
    )
    return Fault(KIND, f"partition {number} stands still: {error}", advice, number)
