"""Ledgers of the audit: entries are the same whether they are in memory or were moved to the disk."""

import tempfile
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from tables.audit.ledger import Entry, Ledger, Scratch
from tables.inventory import Stock


@given(st.lists(st.integers(0, 600), max_size=1500))
def test_entries_are_kept_whether_they_are_in_memory_or_not(numbers: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        scratch = Scratch(Path(folder) / "audit")
        ledger: Ledger[Entry[Stock]] = Ledger(Entry[Stock], "stock", scratch, entries_max=50)
        expected: dict[bytes, Entry[Stock]] = {}
        for offset, number in enumerate(numbers):
            key = f"p-{number}".encode()
            entry = ledger.get(key)
            assert entry == expected.get(key)
            on_hand = entry.row.on_hand + 1 if entry is not None else 1
            expected[key] = Entry(Stock(f"p-{number}", on_hand), offset)
            ledger.put(key, Entry(Stock(f"p-{number}", on_hand), offset), is_new=entry is None)
        assert dict(ledger.items()) == expected
        assert len(ledger) == len(expected)
        scratch.remove()
        assert not (Path(folder) / "audit").exists()
