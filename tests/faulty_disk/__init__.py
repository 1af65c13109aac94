"""A disk that fails on purpose: calls to the operating system, under the real RocksDB, in a process of its own.

`build` compiles a small library. A process that was started with the environment of `FaultyDisk.environment` loads it
before all others; which of its calls fail then is said by `arm`, from that process or another one.
"""

from __future__ import annotations

import mmap
import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Final, NamedTuple

SOURCE: Final = Path(__file__).with_name("shim.c")
CONTROL: Final = "FAULTY_DISK_CONTROL"
OPEN, WRITE, SYNC, RENAME, READ = 1, 2, 4, 8, 16  # `rename` stands for all changes of a folder
FAIL, SHORT, FLIP = 0, 1, 2  # an error; half of the bytes, then none; one bit is another (of what is read)
_BLOCK: Final = struct.Struct("=7i512s64s")
_COUNTS: Final = struct.Struct("=2i")
_COUNTS_AT: Final = 5 * 4


class Fault(NamedTuple):
    """The calls of index `skip` up to `skip + times` that do one of `operations` on a file below a folder fail.

    `part` has to be in the path of the file; `error` is an errno.
    """

    operations: int
    mode: int
    error: int
    skip: int
    times: int
    part: str = ""


class FaultyDisk:
    """The files below `folder`, for processes that have `control` in their environment."""

    def __init__(self, control: Path, folder: Path) -> None:
        self._folder = str(folder.resolve()).encode()
        if not control.exists():
            control.write_bytes(bytes(_BLOCK.size))
        with control.open("r+b") as file:
            self._block = mmap.mmap(file.fileno(), _BLOCK.size)

    def arm(self, fault: Fault) -> None:
        """Let calls fail from now on."""
        operations, mode, error, skip, times, part = fault
        self.lift()
        self._block[:] = _BLOCK.pack(0, mode, error, skip, times, 0, 0, self._folder, part.encode())
        self._block[:4] = struct.pack("=i", operations)

    def lift(self) -> int:
        """Let no call fail any more; how many have failed."""
        self._block[:4] = bytes(4)
        _, failed = _COUNTS.unpack_from(self._block, _COUNTS_AT)
        return int(failed)


def why_not_here() -> str | None:
    """Why the library cannot be built or loaded on this machine, None where it can."""
    if sys.platform != "linux":
        return "libraries are loaded before others on Linux only"
    return None if shutil.which("cc") else "there is no cc on the path"


def build(folder: Path) -> Path:
    """Compile the library; raises CalledProcessError, and FileNotFoundError where there is no compiler."""
    library = folder / "faulty_disk.so"
    command = ["cc", "-shared", "-fPIC", "-O1", "-Wall", "-Werror", "-o", str(library), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    return library


def environment(library: Path, control: Path) -> dict[str, str]:
    """The environment of a process whose disk may fail."""
    control.write_bytes(bytes(_BLOCK.size))
    return {**os.environ, "LD_PRELOAD": str(library), CONTROL: str(control)}
