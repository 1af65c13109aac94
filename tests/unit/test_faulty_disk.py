"""The library that lets a disk fail: what rests on it proves nothing unless its faults happen."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from tests import faulty_disk
from tests.faulty_disk import FAIL, FLIP, OPEN, READ, RENAME, SHORT, SYNC, WRITE, Fault, FaultyDisk

FULL, BROKEN = errno.ENOSPC, errno.EIO
# Four calls each, of which those of index 1 and 2 are struck.
CALLS = {
    OPEN: "os.close(os.open(path, os.O_RDONLY))",
    WRITE: "os.pwrite(file, b'abcdefgh', 0)",
    SYNC: "os.fsync(file)",
    RENAME: "os.replace(path, path)",
    READ: "os.pread(file, 8, 0)",
}
SCRIPT = """
import os, sys
path, is_open = sys.argv[1], sys.argv[2] == "open"
file = os.open(path, os.O_RDWR) if is_open else -1
for _ in range(4):
    try:
        print({call})
    except OSError as error:
        print(error.errno)
"""


@pytest.mark.parametrize(
    ("operations", "mode", "error", "expected"),
    [
        (OPEN, FAIL, BROKEN, ["None", BROKEN, BROKEN, "None"]),
        (WRITE, FAIL, FULL, [8, FULL, FULL, 8]),
        (WRITE, SHORT, FULL, [8, 4, 4, 8]),
        (SYNC, FAIL, BROKEN, ["None", BROKEN, BROKEN, "None"]),
        (RENAME, FAIL, FULL, ["None", FULL, FULL, "None"]),
        (READ, FAIL, BROKEN, [b"abcdefgh", BROKEN, BROKEN, b"abcdefgh"]),
        (READ, SHORT, BROKEN, [b"abcdefgh", b"abcd", b"abcd", b"abcdefgh"]),
        (READ, FLIP, BROKEN, [b"abcdefgh", b"abcddfgh", b"abcddfgh", b"abcdefgh"]),
    ],
)
@pytest.mark.parametrize("is_below", [True, False], ids=["below the folder", "beside it"])
def test_the_calls_that_are_struck_fail_and_no_other(
    tmp_path: Path,
    faulty_disk_library: Path,
    operations: int,
    mode: int,
    error: int,
    expected: list[object],
    is_below: bool,
) -> None:
    for name in ("below", "beside"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.sst").write_bytes(b"abcdefgh")
    environment = faulty_disk.environment(faulty_disk_library, tmp_path / "control")
    disk = FaultyDisk(tmp_path / "control", tmp_path / "below")
    disk.arm(Fault(operations, mode, error, 1, 2, ".sst"))
    file = tmp_path / ("below" if is_below else "beside") / "a.sst"
    script = SCRIPT.format(call=CALLS[operations])
    command = [sys.executable, "-c", script, str(file), "" if operations == OPEN else "open"]
    output = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(value) for value in (expected if is_below else [expected[0]] * 4)]
    assert disk.lift() == (2 if is_below else 0)
