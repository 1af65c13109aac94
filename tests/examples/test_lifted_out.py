"""The engine lifted out: its folder and the sensors in an empty place, with what it needs and nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
import venv
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import httpx
import pytest

from tests.e2e.processes import REPOSITORY, Site

FOLDERS = ("engine", "examples/sensors")
NO_CACHES = shutil.ignore_patterns("__pycache__")
SHOP_ONLY = {"aiosmtplib", "iso4217"}


def needed(names: list[str]) -> Iterator[metadata.Distribution]:
    """The installed distributions of these names, and all that they need in turn, on this machine."""
    done: set[str] = set()
    while names:
        name = re.sub(r"[-_.]+", "-", names.pop()).lower()
        if name in done:
            continue
        done.add(name)
        try:
            found = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            continue  # not for this machine: the lock that the tests' environment is made of has all others
        yield found
        names += [name_of(line) for line in found.requires or () if "extra ==" not in line]


def name_of(requirement: str) -> str:
    match = re.match(r"[\w.-]+", requirement)
    assert match is not None, requirement
    return match[0]


def environment_in(folder: Path) -> Path:
    """An environment with what `engine/requirements.txt` leads to, taken from the one that the tests run in."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    (packages,) = folder.glob("lib/python*/site-packages")
    lines = (REPOSITORY / "engine" / "requirements.txt").read_text().splitlines()
    for distribution in needed([name_of(line) for line in lines if not line.startswith("#")]):
        assert distribution.metadata["Name"].lower() not in SHOP_ONLY
        for file in distribution.files or ():
            source = Path(str(distribution.locate_file(file)))
            if ".." not in file.parts and "__pycache__" not in file.parts and source.exists():
                (packages / file).parent.mkdir(parents=True, exist_ok=True)
                (packages / file).symlink_to(source)
    return python


@pytest.mark.slow
def test_the_engine_and_the_sensors_run_in_an_empty_folder_with_what_the_engine_needs(
    tmp_path: Path, unused_port: int
) -> None:
    for name in FOLDERS:
        shutil.copytree(REPOSITORY / name, tmp_path / name, ignore=NO_CACHES)
    python = environment_in(tmp_path / "environment")
    site = Site(tmp_path, unused_port)
    site.settings = {
        "PYTHONPATH": "",
        "PYTHONSAFEPATH": "",
        "SENSORS_DATA_DIR": str(tmp_path / "data"),
        "SENSORS_WEB_PORT": str(unused_port),
    }
    is_alone = (
        "import sys, engine, examples.sensors.app\n"
        "examples.sensors.app.app\n"
        "print({name.split('.')[0] for name in sys.modules} & {'streams', 'domain', 'tables', 'agents', 'cli'})\n"
        "print(engine.__file__)"
    )
    alone = subprocess.run(
        [python, "-c", is_alone], cwd=tmp_path, env=site.environment({}), capture_output=True, text=True, check=False
    )
    assert alone.stdout.split("\n")[:2] == ["set()", str(tmp_path / "engine" / "__init__.py")], alone.stderr
    command = (str(python), "-m", "faust", "-A", "examples.sensors.app")
    with site.start("worker", command=command) as worker:
        worker.wait_until_ready()
        sent = httpx.post(f"{site.url}/sensors/s-1/readings", json={"celsius": "21.5"})
        shown = site.get("/sensors/s-1", after=sent.json()["token"], timeout="30s")
        assert (shown["latest"], shown["count"]) == ("21.5", 1)
        assert {"/sensors", "/dead-letters"} <= site.get("/openapi.json")["paths"].keys()
        assert "alerts" in site.get("/asyncapi.json")["channels"]
        doctor = site.run("doctor", command=(str(python), "-m", "examples.sensors.app"))
        assert doctor.returncode == 0, doctor.stdout + doctor.stderr
        assert worker.stop() == 0
