"""What is done about transactions without markers, by what their coordinator says; and identities that cast doubt."""

from __future__ import annotations

import pytest

from engine.log.kafka.transactions.hanging import Decision, decide, writer_timeout_ms
from engine.log.kafka.transactions.transactions import TransactionState
from engine.log.ports import OpenTransaction, Record
from engine.store.changelogs import IDENTITY_KEY, casts_doubt, doubtful_identity, has_everything, new_identity

WRITER_MS = writer_timeout_ms(10.0)
COMMITTING_MS = WRITER_MS - 1
COMMIT, ABORT, UNKNOWN = Decision(True, True), Decision(False, True), Decision(False, False)


@pytest.mark.parametrize(
    ("state", "timeout_ms", "epochs", "decision"),
    [
        ("CompleteCommit", WRITER_MS, (6,), COMMIT),
        ("CompleteCommit", WRITER_MS, (6, 5), UNKNOWN),
        ("CompleteCommit", COMMITTING_MS, (5,), COMMIT),  # of the transaction that was to commit what hangs
        ("Ongoing", WRITER_MS, (6,), COMMIT),  # beside the open one: a writer goes on after commits only
        ("CompleteAbort", WRITER_MS, (6,), ABORT),
        ("CompleteAbort", WRITER_MS, (5,), ABORT),  # by a new producer, or by the timeout
        ("CompleteAbort", WRITER_MS, (4,), UNKNOWN),
        ("CompleteAbort", COMMITTING_MS, (5,), UNKNOWN),  # the timeout came before the commit
        ("Empty", WRITER_MS, (5,), UNKNOWN),
        ("Empty", COMMITTING_MS, (5,), COMMIT),
    ],
)
def test_what_hangs_is_decided_as_it_was_where_that_can_be_known(
    state: str, timeout_ms: int, epochs: tuple[int, ...], decision: Decision
) -> None:
    known = TransactionState(state, timeout_ms, 0, 2, 6, frozenset())
    hanging = [OpenTransaction("order-events", number, 2, epoch, 0, 0) for number, epoch in enumerate(epochs)]
    assert decide(known, hanging) == decision


@pytest.mark.parametrize("timeout_s", [1.0, 1.001, 9.999, 10.0])
def test_a_writers_timeout_never_looks_like_one_that_commits_what_hangs(timeout_s: float) -> None:
    assert writer_timeout_ms(timeout_s) % 2 == 0
    assert timeout_s * 1000 - 2 < writer_timeout_ms(timeout_s) <= timeout_s * 1000


def test_an_identity_casts_doubt_on_stores_that_do_not_know_it_and_on_no_others() -> None:
    plain, doubtful = new_identity(), doubtful_identity(new_identity())
    record = Record(7, 0, IDENTITY_KEY, doubtful, ())
    assert casts_doubt([record], plain)
    assert casts_doubt([record], doubtful_identity(plain))
    assert not casts_doubt([record], doubtful)
    assert not casts_doubt([record], b"")  # a store that is being restored from the beginning
    assert not casts_doubt([Record(7, 0, IDENTITY_KEY, new_identity(), ())], plain)


def test_a_doubtful_identity_says_as_the_one_before_from_where_on_a_changelog_was_repaired() -> None:
    assert has_everything(doubtful_identity(new_identity(40)), 40)
    assert not has_everything(doubtful_identity(new_identity(40)), 41)
    assert not has_everything(doubtful_identity(new_identity()), 1)
