"""A test that hangs, and what it leaves running, ends within limits; everything else is still run."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from tests.chaos.faults import ROOT

HEADER = """
import asyncio, os, threading, time
import pytest
from mode import Service

class Left(Service):
    @Service.task
    async def _serve(self):
        while not self.should_stop:
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                pass

async def forever():
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            pass
"""
LEFTOVERS = """
async def test_leaves_a_service_when_it_fails():
    await Left().start()
    assert False, "first"

async def test_leaves_a_task():
    asyncio.create_task(forever(), name="stubborn")
    await asyncio.sleep(0)

async def test_leaves_a_task_that_can_be_cancelled():
    asyncio.create_task(asyncio.sleep(3600))
    await asyncio.sleep(0)
"""
HANGS = """
def test_before(): pass

@pytest.fixture
def slow_end():
    yield
    time.sleep(3600)

def test_fails_and_hangs_in_its_teardown(slow_end):
    assert False

def test_after(): pass

async def test_hangs_in_its_loop():
    await asyncio.wait({asyncio.create_task(forever(), name="waiting")})

def test_last(): pass
"""
NEVER_ENDS = """
def test_leaves_a_thread():
    threading.Thread(target=time.sleep, args=(3600,), name="never-ends").start()
"""


def pytest_on(folder: Path, body: str, *arguments: str, **limits: str) -> subprocess.CompletedProcess[str]:
    """Run pytest with the hooks of these tests on a file of tests."""
    (folder / "test_it.py").write_text(HEADER + body)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    plugins = ("pytest_asyncio.plugin", "xdist", "tests.conftest", "no:cacheprovider")
    options = ("-v", "-c", str(ROOT / "pyproject.toml"), *(f"-p{plugin}" for plugin in plugins))
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *arguments, str(folder)],
        cwd=ROOT,
        env={**inherited, "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", **limits},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_what_a_test_leaves_running_is_ended_and_fails_it_by_name(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, LEFTOVERS)
    assert "1 failed, 2 passed, 2 errors" in done.stdout, done.stdout + done.stderr
    assert "first" in done.stdout.split("= ERRORS =")[0]  # at once, not only at the end
    assert re.search(r"<Left: running .*> was left running", done.stdout)
    assert "a task takes no cancellation: stubborn" in done.stdout


def test_a_test_that_hangs_ends_its_process_with_stacks_and_the_others_of_its_file_are_run(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, HANGS, "--numprocesses=1", "--dist=loadfile", TEST_LIMIT_S="3")
    # One fails on its own account, and its process ends as well.
    assert "3 failed, 3 passed" in done.stdout, done.stdout + done.stderr
    for test in ("test_fails_and_hangs_in_its_teardown", "test_hangs_in_its_loop"):
        assert f"::{test} takes longer than 3 s" in done.stderr
    assert "in slow_end" in done.stderr  # a thread's stack
    assert "waiting <coroutine object forever" in done.stderr  # a task's


def test_a_session_ends_even_if_a_thread_does_not(tmp_path: Path) -> None:
    done = pytest_on(tmp_path, NEVER_ENDS, SESSION_END_LIMIT_S="1")
    assert done.returncode == 1
    assert "1 passed" in done.stdout
    assert "the end of the session takes longer than 1 s" in done.stderr
