"""Where a worker's time goes: py-spy beside a benchmark, its stacks in a file and the largest shares on stderr."""

import asyncio
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path

SHOWN = 25
SAMPLES_PER_S = 250
STOP_TIMEOUT_S = 30.0
_FRAME = re.compile(r"^(.*) \((.*?)(?::\d+)?\)$")


class NoProfiler(Exception):
    """py-spy is not there."""


def find_profiler() -> str:
    """py-spy of this environment or of the path; raises NoProfiler."""
    beside = Path(sys.executable).parent / "py-spy"
    found = str(beside) if beside.exists() else shutil.which("py-spy")
    if found is None:
        raise NoProfiler("--profile needs py-spy, in the virtual environment or on the path (pip install py-spy)")
    return found


@asynccontextmanager
async def profiling(pid: int, folder: Path | None, name: str) -> AsyncIterator[None]:
    """Sample a process meanwhile, if there is a folder for its stacks.

    Writes `{name}.txt`, a line per stack, as flame graph tools read it.
    """
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"{name}.txt"
    sampler = await asyncio.create_subprocess_exec(
        *(find_profiler(), "record", "--pid", str(pid), "--rate", str(SAMPLES_PER_S), "--format", "raw"),
        *("--nonblocking", "--output", str(output)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        if sampler.returncode is None:
            sampler.send_signal(signal.SIGINT)
        await asyncio.wait_for(sampler.wait(), STOP_TIMEOUT_S)
    print(f"stacks are in {output}", *shares(output.read_text().splitlines()), sep="\n", file=sys.stderr)


def shares(stacks: Iterable[str]) -> list[str]:
    """The functions that most samples are in, by themselves and with what they call."""
    own: Counter[str] = Counter()
    whole: Counter[str] = Counter()
    for line in stacks:
        stack, _, samples = line.rpartition(" ")
        frames = [_without_line(frame) for frame in stack.split(";")]
        own[frames[-1]] += int(samples)
        for frame in {*frames}:
            whole[frame] += int(samples)
    total = own.total() or 1
    shown = [f"{'own':>7} {'whole':>7}  function ({total} samples)"]
    for frame, count in own.most_common(SHOWN):
        shown.append(f"{count / total:7.1%} {whole[frame] / total:7.1%}  {frame}")
    shown.append("  with what they call:")
    shown += [f"{own[frame] / total:7.1%} {count / total:7.1%}  {frame}" for frame, count in whole.most_common(SHOWN)]
    return shown


def _without_line(frame: str) -> str:
    found = _FRAME.match(frame)
    return f"{found[1]} ({found[2]})" if found else frame
