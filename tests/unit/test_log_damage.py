"""An embedded log on a disk that lies: what is missing or damaged is named, never taken for a new or a shorter log."""

from __future__ import annotations

import json
import logging
import random
import shutil
from pathlib import Path

import pytest
from rocksdict import Options, Rdict

from engine.declare.application import Application
from engine.log.embedded import log as log_module
from engine.log.embedded import opening as log_opening
from engine.log.embedded import storage as log_storage
from engine.log.embedded.check import check_log, repair_log, repairs_path
from engine.log.embedded.errors import LogDamaged, LogLocked, LogReadFailed
from engine.log.embedded.layout import row_key
from engine.log.embedded.log import Log, LogUnavailable, LogWriteFailed, NewRecord, RocksStorage, TopicConfig
from engine.log.embedded.mark import mark_path, read_mark
from streams.settings import APPLICATION
from tests.damage import flip

APPENDS = 60


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A log of a worker that was killed: everything is in the write-ahead log only."""
    living = tmp_path / "living" / "log"
    storage = RocksStorage(living)
    log = Log(storage)
    log.create_topic("orders", TopicConfig(partitions=1))
    for number in range(APPENDS):
        log.append("orders", 0, [NewRecord(b"k", b"%03d" % number + b"x" * 500)])
    # What a kill leaves is what the operating system has: the files as they are now.
    shutil.copytree(living.parent, tmp_path / "data")
    log.close()
    return tmp_path / "data" / "log"


@pytest.fixture
def closed(folder: Path) -> Path:
    """A log of a worker that was stopped in order: everything is in tables."""
    Log(RocksStorage(folder)).close()
    assert list(folder.glob("*.sst"))
    return folder


def count(folder: Path) -> int:
    """Records of a log that is opened and closed again."""
    log = Log(RocksStorage(folder))
    try:
        return len(log.read("orders", 0, 0, max_bytes=1 << 30)[0])
    finally:
        log.close()


def wal(folder: Path) -> Path:
    """The write-ahead log that has something in it."""
    (file,) = (file for file in folder.glob("*.log") if file.stat().st_size)
    return file


def test_a_log_that_was_killed_or_closed_is_opened_whole(folder: Path) -> None:
    assert count(folder) == APPENDS
    assert count(folder) == APPENDS
    mark = read_mark(folder)
    assert mark is not None
    assert mark.is_closed


def test_a_log_of_a_release_without_marks_gets_one(closed: Path) -> None:
    mark_path(closed).unlink()
    database = Rdict(str(closed), Options(raw_mode=True))
    database.delete(log_opening.ID_KEY)
    database.close()
    assert count(closed) == APPENDS
    assert read_mark(closed) is not None


def test_a_log_that_cannot_be_opened_again_is_not_tried_again_by_every_request(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[Path] = []

    def refuse(path: Path, _application: Application) -> None:
        tries.append(path)
        raise LogUnavailable("the disk is broken")

    storage = RocksStorage(closed)
    monkeypatch.setattr(log_storage, "open_log", refuse)
    with pytest.raises(LogUnavailable):
        storage.reopen()
    for _ in range(3):
        with pytest.raises(LogWriteFailed, match="tried again in"):
            storage.reopen()
    assert tries == [closed]
    monkeypatch.undo()
    monkeypatch.setattr(log_storage, "REOPEN_PAUSE_S", 0.0)
    storage._reopen_at = 0.0
    storage.reopen()
    storage.close()


def test_a_log_that_was_opened_again_and_could_not_be_loaded_is_opened_by_the_next_write(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_storage, "REOPEN_PAUSE_S", 0.0)
    storage = RocksStorage(closed)
    log = Log(storage)
    storage._failed = True

    def fail(_: object) -> None:
        raise LogReadFailed("a block is damaged")

    with monkeypatch.context() as patch:
        patch.setattr(log_module, "load_state", fail)
        with pytest.raises(LogReadFailed):
            log.append("orders", 0, [NewRecord(b"k", b"v")])
    assert log.append("orders", 0, [NewRecord(b"k", b"v")]) == APPENDS
    log.close()


def test_a_start_that_was_killed_before_anything_was_written_begins_again(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    for name in ("LOG", "IDENTITY", "MANIFEST-000001"):
        (folder / name).touch()
    Log(RocksStorage(folder)).close()


@pytest.mark.parametrize("seed", range(12))
def test_a_flipped_byte_of_the_write_ahead_log_is_damage_wherever_it_is(folder: Path, seed: int) -> None:
    file = wal(folder)
    flip(file, random.Random(seed).randrange(file.stat().st_size))
    for _ in range(2):  # the next start does not take what is left for all there was
        with pytest.raises(LogDamaged, match=r"is damaged.*orders log check.*orders log repair"):
            RocksStorage(folder, application=APPLICATION)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_write_ahead_log_that_has_become_shorter_is_damage_while_the_machine_was_up(
    folder: Path, share: float
) -> None:
    with wal(folder).open("r+b") as file:
        file.truncate(int(wal(folder).stat().st_size * share))
    for _ in range(2):
        with pytest.raises(LogDamaged, match=r"has lost the last \d+ of \d+ rows, .* although they were acknowledged"):
            RocksStorage(folder)


def test_what_a_machine_that_went_down_had_not_written_is_told_and_the_rest_goes_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(log_opening, "this_boot", lambda: "the next run of the machine")
    with wal(folder).open("r+b") as file:
        file.truncate(wal(folder).stat().st_size // 2)
    with caplog.at_level(logging.WARNING):
        assert 0 < count(folder) < APPENDS
    assert "the machine went down" in caplog.text


def test_a_log_that_was_closed_in_order_has_lost_nothing_when_the_machine_goes_down(
    closed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_opening, "this_boot", lambda: "the next run of the machine")
    mark = read_mark(closed)
    assert mark is not None
    text = mark_path(closed).read_text().replace(f'"sequence":{mark.sequence}', f'"sequence":{mark.sequence + 5}')
    mark_path(closed).write_text(text)
    with pytest.raises(LogDamaged, match="has lost the last 5 of"):
        RocksStorage(closed)


def test_a_log_without_current_is_never_begun_anew(closed: Path) -> None:
    tables = set(closed.glob("*.sst"))
    (closed / "CURRENT").unlink()
    for _ in range(3):
        with pytest.raises(LogDamaged, match="its file CURRENT is missing"):
            RocksStorage(closed)
    assert set(closed.glob("*.sst")) == tables


@pytest.mark.parametrize("is_marked", [True, False])
def test_an_unmarked_log_without_current_is_not_begun_anew_either(folder: Path, is_marked: bool) -> None:
    if not is_marked:
        mark_path(folder).unlink()
    (folder / "CURRENT").unlink()
    with pytest.raises(LogDamaged):
        RocksStorage(folder)
    assert wal(folder).exists()


def test_a_log_whose_folder_is_gone_is_not_begun_anew(closed: Path) -> None:
    shutil.rmtree(closed)
    with pytest.raises(LogDamaged, match="it was deleted, or a copy broke off"):
        RocksStorage(closed)


def test_a_folder_with_the_mark_of_another_log_is_refused(closed: Path, tmp_path: Path) -> None:
    Log(RocksStorage(tmp_path / "other" / "log")).close()
    shutil.copy(mark_path(tmp_path / "other" / "log"), mark_path(closed))
    with pytest.raises(LogDamaged, match="copies were mixed"):
        RocksStorage(closed)


def test_a_damaged_mark_is_named_and_the_log_is_left_alone(closed: Path) -> None:
    mark_path(closed).write_text("{")
    with pytest.raises(LogUnavailable, match=r"log\.mark is damaged"):
        RocksStorage(closed)


def test_rows_without_a_layout_version_are_damage(closed: Path) -> None:
    database = Rdict(str(closed), Options(raw_mode=True))
    database.delete(b"v")
    database.close()
    with pytest.raises(LogDamaged, match="does not say of which layout"):
        Log(RocksStorage(closed))


# ---- check and repair


def test_a_whole_log_has_no_problems_and_check_changes_nothing(folder: Path) -> None:
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    report = check_log(folder)
    assert (report.topics, report.records, report.problems) == (1, APPENDS, [])
    assert report.newest_ms > 0
    assert {name: raw for name, raw in before.items() if (folder / name).read_bytes() != raw} == {}
    assert repair_log(folder, "to be sure") == (report, [])
    assert not repairs_path(folder).exists()


def test_check_and_repair_of_a_log_in_use_say_so(tmp_path: Path) -> None:
    log = Log(RocksStorage(tmp_path / "log"))
    with pytest.raises(LogLocked):
        repair_log(tmp_path / "log", "why")
    log.close()


def test_a_repair_leaves_out_what_lies_behind_the_damage_and_writes_down_how_much(folder: Path) -> None:
    flip(wal(folder), wal(folder).stat().st_size // 2)
    checked = check_log(folder)
    assert 0 < checked.records < APPENDS
    assert checked.lost_rows > 0
    assert not checked.damaged
    repaired, done = repair_log(folder, "no backup")
    assert repaired.records == checked.records
    assert len(done) == 2
    assert count(folder) == checked.records
    assert check_log(folder).problems == []
    (entry,) = map(json.loads, repairs_path(folder).read_text().splitlines())
    assert entry["reason"] == "no backup"
    assert entry["lost_rows"] == checked.lost_rows
    assert entry["done"] == done


def test_a_repair_makes_current_again_and_loses_nothing(closed: Path) -> None:
    (closed / "CURRENT").unlink()
    with pytest.raises(LogUnavailable, match="orders log repair"):
        check_log(closed, APPLICATION)
    report, done = repair_log(closed, "a copy broke off")
    assert report.records == APPENDS
    assert [text.split(",")[0] for text in done] == ["made CURRENT again"]
    assert count(closed) == APPENDS


def test_a_repair_takes_a_log_with_another_or_a_damaged_mark_as_it_is(closed: Path) -> None:
    mark_path(closed).write_text("{")
    assert check_log(closed).records == APPENDS
    assert check_log(closed).broken_off
    repair_log(closed, "the mark was damaged")
    assert count(closed) == APPENDS


def test_rows_that_are_missing_or_damaged_in_the_middle_are_named_and_not_repaired(closed: Path) -> None:
    database = Rdict(str(closed), Options(raw_mode=True))
    database.delete(row_key(0, 0, 20))
    database.close()
    missing = "orders/0: offsets 20 to 20 are missing: only a backup of the data folder has them"
    assert check_log(closed).damaged == [missing]
    assert repair_log(closed, "why")[0].damaged == [missing]
    assert check_log(closed).damaged == [missing]


def test_a_damaged_table_is_found_by_its_checksums(closed: Path) -> None:
    table = max(closed.glob("*.sst"), key=lambda file: file.stat().st_size)
    flip(table, table.stat().st_size // 3)
    (problem,) = check_log(closed).damaged
    assert problem.startswith("orders/0: ")
    assert "only a backup" in problem


@pytest.mark.parametrize("is_new", [True, False], ids=["without a mark", "with its mark"])
def test_a_damaged_id_and_a_close_that_fails_are_said_in_a_sentence(
    folder: Path, is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if is_new:
        mark_path(folder).unlink()
    damage = Exception("Corruption: block checksum mismatch")

    class Damaged:
        """RocksDB that has found damage in its files."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            self._real = Rdict(*args, **kwargs)  # type: ignore[arg-type]

        def __getattr__(self, name: str) -> object:
            return getattr(self._real, name)

        def get(self, key: bytes) -> bytes:
            raise damage

        def close(self) -> None:
            self._real.close()
            raise damage

    monkeypatch.setattr(log_opening, "Rdict", Damaged)
    with pytest.raises(LogDamaged, match="checksum mismatch"):
        log_opening.open_log(folder)
    with pytest.raises(LogUnavailable, match=r"the id of the log .* restore a backup"):
        repair_log(folder, "why")
    monkeypatch.undo()
    assert count(folder) == APPENDS
