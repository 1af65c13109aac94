"""The store of a partition: atomic writes, ordered scans, marks of changelogs, and errors that say what to do."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from streams.engine.store import ChangelogMark, Store, StoreError, explain_open_failure

P = b"rows\0"
Q = b"rowsmore\0"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "deep" / "0")
    yield store
    store.close()


def put(store: Store, prefix: bytes, **rows: bytes | None) -> None:
    store.write([(prefix, [(key.encode(), value, ()) for key, value in rows.items()])], {})


def keys(found: Iterator[tuple[bytes, bytes]]) -> list[bytes]:
    return [key for key, _ in found]


def test_rows_and_marks_are_there_after_reopening(tmp_path: Path) -> None:
    store = Store(tmp_path / "0")
    assert (store.mark("log"), store.written_at) == (ChangelogMark(), 0.0)
    store.write([(P, [(b"a", b"1", ()), (b"b", b"2", ())])], {"log": ChangelogMark(7, b"id", 3)})
    store.write([(P, [(b"b", None, ())])], {"other": ChangelogMark(1)})
    written_at = store.written_at
    store.close()
    again = Store(tmp_path / "0")
    assert (again.get(P + b"a"), again.get(P + b"b")) == (b"1", None)
    assert (again.mark("log"), again.mark("other")) == (ChangelogMark(7, b"id", 3), ChangelogMark(1))
    assert again.written_at == written_at > 0
    again.close()


def test_a_scan_gives_the_rows_of_one_prefix_in_order(store: Store) -> None:
    put(store, P, b=b"2", a=b"1", c=b"3")
    put(store, Q, a=b"x")
    assert list(store.scan(P)) == [(P + b"a", b"1"), (P + b"b", b"2"), (P + b"c", b"3")]
    assert keys(store.scan(P, start=P + b"b")) == [P + b"b", P + b"c"]
    assert keys(store.scan(P, start=P + b"bb")) == [P + b"c"]
    assert keys(store.scan(P, reverse=True)) == [P + b"c", P + b"b", P + b"a"]
    assert keys(store.scan(P, start=P + b"b", reverse=True)) == [P + b"b", P + b"a"]
    assert keys(store.scan(P, start=P + b"bb", reverse=True)) == [P + b"b", P + b"a"]
    assert keys(store.scan(b"nothing")) == []


def test_a_wiped_store_knows_nothing(store: Store) -> None:
    store.write([(P, [(b"a", b"1", ())])], {"log": ChangelogMark(7)})
    store.wipe()
    assert (store.get(P + b"a"), store.mark("log"), store.written_at) == (None, ChangelogMark(), 0.0)
    put(store, P, a=b"2")
    assert store.get(P + b"a") == b"2"


def test_a_folder_in_use_is_refused_with_what_to_do(store: Store) -> None:
    with pytest.raises(StoreError, match=r"in use by another process.*ORDERS_DATA_DIR"):
        Store(store.path)


def test_a_damaged_store_is_refused_with_what_to_do(tmp_path: Path) -> None:
    store = Store(tmp_path / "0")
    put(store, P, a=b"1")
    store.close()
    (tmp_path / "0" / "CURRENT").write_text("nonsense")
    with pytest.raises(StoreError, match="damaged; delete it"):
        Store(tmp_path / "0")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError("Permission denied"), "permissions"),
        (OSError("No space left on device"), "free space"),
        (RuntimeError("IO error: lock hold by current process"), "in use"),
        (RuntimeError("Corruption"), "delete it"),
    ],
)
def test_each_reason_not_to_open_has_its_remedy(error: Exception, remedy: str) -> None:
    assert remedy in explain_open_failure(Path("0"), error)
