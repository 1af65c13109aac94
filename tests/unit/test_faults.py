"""Faults: reported once, replaced, cleared, and left to the worker that owns the partition."""

from __future__ import annotations

import pytest

from engine.health.faults import Fault, Faults

LOSS = Fault("lost records", "order-commands/1: 5 records are gone", "accept their loss", partition=1)
DISK = Fault("disk", "the disk is full", "free space")


def test_the_log_has_one_line_for_a_fault_however_often_it_is_reported(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults()
    for _ in range(3):
        faults.report(("loss", 1), LOSS)
    assert [record.getMessage() for record in caplog.records] == [
        "order-commands/1: 5 records are gone: accept their loss"
    ]
    assert list(faults.open()) == [LOSS]


def test_a_fault_that_changes_replaces_the_one_with_its_key(caplog: pytest.LogCaptureFixture) -> None:
    faults = Faults()
    faults.report(("loss", 1), LOSS)
    more = Fault("lost records", "order-commands/1: 6 records are gone", "accept their loss", partition=1)
    faults.report(("loss", 1), more)
    assert list(faults.open()) == [more]
    assert len(caplog.records) == 2


def test_a_cleared_fault_is_gone_and_one_that_never_was_may_be_cleared() -> None:
    faults = Faults()
    faults.report(("loss", 1), LOSS)
    faults.clear(("loss", 1))
    faults.clear(("loss", 2))
    assert list(faults.open()) == []
    assert ("loss", 1) not in faults


def test_faults_of_a_partition_go_with_it() -> None:
    faults = Faults()
    faults.report(("loss", 1), LOSS)
    faults.report(("disk",), DISK)
    faults.forget_partition(1)
    assert list(faults.open()) == [DISK]
