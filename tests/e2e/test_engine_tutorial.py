"""docs/engine.md, from nothing to a tested worker: its code is put into files, and what it runs is run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.processes import REPOSITORY, Running, Site
from tests.kafka import unused_port

TUTORIAL = (REPOSITORY / "docs/engine.md").read_text()
FILES = ("polls.py", "test_polls.py")
URL_OF_THE_DOCUMENT = "http://127.0.0.1:6067"


def blocks(kind: str) -> list[str]:
    """The blocks of the document that begin with this kind: a language, with the name of a file where it has one."""
    return re.findall(rf"^```{re.escape(kind)}\n(.*?)^```$", TUTORIAL, flags=re.MULTILINE | re.DOTALL)


def lines_with(text: str) -> list[str]:
    """The lines of its shell blocks in which a text is."""
    return [line for block in blocks("sh") for line in block.splitlines() if text in line]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of the document."""
    path = tmp_path_factory.mktemp("polls")
    for name in FILES:
        (path / name).write_text("\n\n\n".join(block.strip("\n") for block in blocks(f"python {name}")) + "\n")
    return path


@pytest.fixture(scope="module")
def site(folder: Path) -> Site:
    port = unused_port()
    site = Site(folder, port)
    site.settings = {"POLLS_WEB_PORT": str(port), "python": sys.executable}
    return site


@pytest.fixture(scope="module")
def worker(site: Site) -> Iterator[Running]:
    """A worker, started by the command of the document."""
    (command,) = [line for line in lines_with("faust -A polls worker") if line.startswith("$python")]
    with site.start("sh", "-c", f"exec {command}", command=()) as running:
        running.wait_until_ready()
        yield running
        assert running.stop() == 0


def shell(site: Site, script: str) -> subprocess.CompletedProcess[str]:
    """Run a script of the document against the worker of this test."""
    return site.run("sh", "-euc", script.replace(URL_OF_THE_DOCUMENT, site.url), command=())


def test_the_tests_of_the_tutorial_pass(folder: Path) -> None:
    (command,) = lines_with("pytest")
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "python": sys.executable}
    done = subprocess.run(
        ["sh", "-c", f"{command} -p no:cacheprovider"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert "2 passed" in done.stdout, done.stdout + done.stderr


def test_the_session_of_the_tutorial_ends_as_it_says(site: Site, worker: Running) -> None:
    (session,) = [block for block in blocks("sh") if "curl" in block]
    *votes, read, expected = session.strip().splitlines()
    done = shell(site, "\n".join(votes))
    assert done.returncode == 0, done.stderr
    token = re.findall(r'"token":"([^"]+)"', done.stdout)[-1]
    done = shell(site, f"{votes[0]}\n{read.replace('AYKt...', f'{token}&timeout=30s')}")
    assert f"# {done.stdout}" == expected


def test_the_commands_of_the_tutorial_work(site: Site, worker: Running) -> None:
    commands = lines_with("$python -m polls ")  # of which one prints two records, and waits until there are so many
    assert shell(site, f"url={site.url}\n" + "\n".join(lines_with("ada") * 2)).returncode == 0
    assert len(commands) == 5
    for command in commands:
        done = shell(site, command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
