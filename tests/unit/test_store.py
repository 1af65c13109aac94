"""The store of a partition: atomic writes, ordered scans, marks of changelogs, and errors that say what to do."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from engine.store.store import ChangelogMark, Store, StoreDamaged, StoreError, explain_open_failure
from streams.settings import APPLICATION
from tests.damage import damage_rows, flip

P = b"rows\0"
Q = b"rowsmore\0"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "deep" / "0")
    yield store
    store.close()


ROWS = 2000


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    """The folder of a closed store with several blocks of rows."""
    store, random_bytes = Store(tmp_path / "filled"), random.Random(1).randbytes
    store.write([(P, [(b"%05d" % n, random_bytes(50), ()) for n in range(ROWS)])], {"log": ChangelogMark(7)})
    store.close()
    return store.path


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
        Store(store.path, APPLICATION)


def lose(pattern: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        for file in path.glob(pattern):
            file.unlink()

    return damage


def spoil(pattern: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        for file in path.glob(pattern):
            flip(file, file.stat().st_size // 2)

    return damage


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(lose("CURRENT"), id="CURRENT missing"),
        pytest.param(lose("*.sst"), id="tables missing"),
        pytest.param(lose("MANIFEST*"), id="MANIFEST missing"),
        pytest.param(spoil("CURRENT"), id="CURRENT flipped"),
        pytest.param(spoil("MANIFEST*"), id="MANIFEST flipped"),
        pytest.param(lambda path: (path / "CURRENT").write_bytes(b""), id="CURRENT empty"),
        pytest.param(lambda path: os.truncate(next(path.glob("*.sst")), 1000), id="table cut off"),
    ],
)
def test_a_damaged_store_is_not_opened_and_loses_no_file(filled: Path, damage: Callable[[Path], object]) -> None:
    damage(filled)
    tables = set(filled.glob("*.sst"))
    for _ in range(2):
        with pytest.raises(StoreDamaged, match="is damaged and cannot be opened"):
            Store(filled)
    assert set(filled.glob("*.sst")) == tables


def test_an_empty_folder_is_a_new_store(tmp_path: Path) -> None:
    (tmp_path / "0").mkdir()
    store = Store(tmp_path / "0")
    assert list(store.scan(b"")) == []
    store.close()


def test_a_scan_that_meets_damage_is_an_error_and_no_end(filled: Path) -> None:
    damage_rows(filled, P, but_not=b"\0meta")
    found: list[StoreDamaged] = []
    read: list[tuple[bytes, bytes]] = []
    store = Store(filled)
    store.on_damage = found.append
    for reverse in (False, True):
        with pytest.raises(StoreDamaged, match="is damaged and cannot be read"):
            read.extend(store.scan(P, reverse=reverse))
    assert 0 < len(read) < 2 * ROWS
    with pytest.raises(StoreDamaged):
        [store.get(P + b"%05d" % number) for number in range(ROWS)]
    assert len(found) == 1
    store.close()
    Store(filled).close()  # what was found keeps no iterator, and with it the folder, in use


def test_a_scrub_reads_every_row_in_slices_and_finds_damage(filled: Path) -> None:
    store, next_key, slices = Store(filled), b"", 0
    while (found := store.scrub(next_key, 0.0)) is not None:
        assert found > next_key
        next_key, slices = found, slices + 1
    store.close()
    assert slices == ROWS + 1  # and the marks
    damage_rows(filled, P, but_not=b"\0meta")
    store = Store(filled)
    with pytest.raises(StoreDamaged):
        store.scrub(b"", float("inf"))
    store.close()
    Store(filled).close()


def test_closing_a_store_ends_scans_that_are_under_way_and_never_as_if_there_were_no_more_rows(filled: Path) -> None:
    store = Store(filled)
    scan = store.scan(P)
    next(scan)
    store.close()
    Store(filled).close()
    with pytest.raises(StoreError, match="closed"):
        list(scan)


def test_rows_without_a_mark_of_their_changelogs_are_damage(tmp_path: Path) -> None:
    store = Store(tmp_path / "0")
    put(store, P, a=b"1")
    store._db.delete(b"\0meta")
    store.close()
    with pytest.raises(StoreDamaged, match="does not say how far"):
        Store(tmp_path / "0")


def test_marks_that_cannot_be_read_are_damage(tmp_path: Path) -> None:
    store = Store(tmp_path / "0")
    put(store, P, a=b"1")
    store._db.put(b"\0meta", b"nonsense")
    store.close()
    with pytest.raises(StoreDamaged):
        Store(tmp_path / "0")


@pytest.mark.parametrize(
    ("error", "remedy"),
    [
        (PermissionError("Permission denied"), "permissions"),
        (OSError("No space left on device"), "free space"),
        (RuntimeError("IO error: lock hold by current process"), "in use"),
        (RuntimeError("IO error: While lock file: 0/LOCK: Resource temporarily unavailable"), "in use"),
        (RuntimeError("IO error: While open a file for appending: Too many open files"), "check the disk"),
        (RuntimeError("Corruption: block checksum mismatch"), None),
    ],
)
def test_each_reason_not_to_open_has_its_remedy(error: Exception, remedy: str | None) -> None:
    found = explain_open_failure(Path("0"), error)
    assert found is None if remedy is None else remedy in str(found)


def test_the_size_is_known_while_files_come_and_go(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    put(store, P, a=b"1")
    size = store.size_bytes()
    files = [*store.path.iterdir(), store.path / "gone"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(files))
    assert 0 < store.size_bytes() == size


def test_the_size_of_a_folder_that_is_gone_is_an_error(store: Store) -> None:
    shutil.rmtree(store.path)
    with pytest.raises(StoreError, match="cannot be looked at"):
        store.size_bytes()
