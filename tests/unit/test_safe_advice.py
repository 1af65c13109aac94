"""Advice that would destroy something when it is followed to the letter is not given: each is followed here."""

from __future__ import annotations

import re
import subprocess
import tarfile
from pathlib import Path

import pytest

from engine.health.doctor import check_data_folder
from engine.log.embedded.log import Log, NewRecord, RocksStorage, TopicConfig
from streams.settings import Settings

ROOT = Path(__file__).parents[2]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


NODES = ("1", "2", "3")


@pytest.fixture
def volumes(tmp_path: Path) -> list[Path]:
    """A segment in the volume of each node of Kafka, as it is today."""
    return write_volumes(tmp_path / "to", "of today")


def write_volumes(folder: Path, text: str) -> list[Path]:
    """Make a volume for each node, with this text in its segment."""
    segments = [folder / node / "order-events-0" / "00.log" for node in NODES]
    for segment in segments:
        segment.parent.mkdir(parents=True)
        segment.write_text(text)
    return segments


def restore_kafka(folder: Path, backup: str) -> int:
    """Run the script in docs/operations.md that restores Kafka, in this folder in place of a container."""
    (script,) = re.findall(r"busybox sh -euc '\n(.*?)'\n", OPERATIONS, re.DOTALL)
    for mounted in ("/to", "/from"):
        script = re.sub(rf"(?<![\w.]){mounted}\b", str(folder / mounted[1:]), script)
    return subprocess.run(["sh", "-euc", script], env={"backup": backup, "PATH": "/usr/bin:/bin"}).returncode


def make_archives(folder: Path) -> None:
    """Archives of the volumes as they were yesterday."""
    write_volumes(folder / "old", "of yesterday " * 1000)
    (folder / "from").mkdir()
    for node in NODES:
        with tarfile.open(folder / "from" / f"kafka-{node}.tar.gz", "w:gz") as archive:
            archive.add(folder / "old" / node, arcname=".")


def test_restoring_kafka_keeps_what_was_there_beside_the_backup(tmp_path: Path, volumes: list[Path]) -> None:
    make_archives(tmp_path)
    assert restore_kafka(tmp_path, "kafka") == 0
    assert all(segment.read_text().startswith("of yesterday") for segment in volumes)
    (kept,) = (tmp_path / "from").glob("kafka-before-*.tar.gz")
    with tarfile.open(kept) as archive:
        for node in NODES:
            found = archive.extractfile(f"./{node}/order-events-0/00.log")
            assert found is not None
            assert found.read() == b"of today"


@pytest.mark.parametrize("backup", ["kafka", "missing", ""])
def test_restoring_kafka_from_an_archive_that_is_damaged_or_missing_changes_no_node(
    tmp_path: Path, volumes: list[Path], backup: str
) -> None:
    make_archives(tmp_path)
    last = tmp_path / "from" / "kafka-3.tar.gz"
    last.write_bytes(last.read_bytes()[: last.stat().st_size // 2])
    assert restore_kafka(tmp_path, backup) != 0
    assert {segment.read_text() for segment in volumes} == {"of today"}


def test_no_document_advises_to_remove_volumes_of_everything() -> None:
    for document in DOCUMENTS:
        commands = "\n".join(re.findall(r"```sh\n(.*?)```", document.read_text(), re.DOTALL))
        assert not re.search(r"volume prune|system prune|down (--volumes|-v)\b|--delete --topic", commands)
        assert not re.search(r"(?<!Not )`docker volume prune`", document.read_text())


def test_a_backup_that_breaks_off_leaves_the_earlier_ones() -> None:
    names = re.findall(r"^backup=(.*)", OPERATIONS, re.MULTILINE)
    assert len(names) == 2
    assert all("$(date +" in name for name in names)


def test_advice_about_a_full_or_closed_folder_takes_its_contents_along(tmp_path: Path) -> None:
    (tmp_path / "blocked").touch()
    (found,) = check_data_folder(Settings(_env_file=None, data_dir=tmp_path / "blocked"))
    assert not found.ok
    assert Settings.application.moving_data in str(found.advice)

    log = Log(RocksStorage(tmp_path / "data" / "log"))
    log.create_topic("orders", TopicConfig(1, False, None))
    log.append("orders", 0, [NewRecord(b"key", b"kept", (), 0)])
    log.close()
    (tmp_path / "data").rename(tmp_path / "moved")
    log = Log(RocksStorage(tmp_path / "moved" / "log"))
    assert [record.value for record in log.read("orders", 0, 0)[0]] == [b"kept"]
    log.close()
