"""A hard limit for each test and for the end of the session: a process that hangs says where, and ends.

pytest's own `faulthandler_timeout` and pytest-timeout take their limits back once a test has failed, and its teardown
is where a failed test hangs. With xdist another process takes over the rest of the file.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import threading
from collections.abc import Generator, Mapping
from typing import Any

import pytest
from xdist.scheduler import LoadFileScheduling

from tests.leftovers import describe

TEST_LIMIT_S = float(os.environ.get("TEST_LIMIT_S", "300"))  # setup, call and teardown; the slowest need a third of it
FAILURE_LINES = 30
SESSION_END_LIMIT_S = float(os.environ.get("SESSION_END_LIMIT_S", "60"))


class Limits:
    """Ends this process when something takes longer than it may, after saying what and where on its first stderr."""

    def __init__(self, config: pytest.Config) -> None:
        capture: Any = config.pluginmanager.getplugin("capturemanager")
        with capture.global_and_fixture_disabled():
            self._stderr = os.dup(2)
        self.loop: asyncio.AbstractEventLoop | None = None  # of the running test

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Limit each test."""
        watch = self._start(TEST_LIMIT_S, item.nodeid)
        try:
            return (yield)
        finally:
            watch.cancel()

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self) -> None:
        """Limit everything that comes after the tests: other hooks, threads that are waited for, handlers at exit."""
        self._start(SESSION_END_LIMIT_S, "the end of the session")

    def _start(self, limit_s: float, what: str) -> threading.Timer:
        watch = threading.Timer(limit_s, self._end_process, [f"{what} takes longer than {limit_s:g} s"])
        watch.daemon = True
        watch.start()
        return watch

    def _end_process(self, why: str) -> None:
        self._write(f"\n{why}: this process ends\n")
        faulthandler.dump_traceback(self._stderr)
        with contextlib.suppress(Exception):  # the loop's thread may be at work on its tasks
            if self.loop is not None:
                for task in asyncio.all_tasks(self.loop):
                    self._write(f"{describe(task)}\n")
        os._exit(1)

    def _write(self, text: str) -> None:
        os.write(self._stderr, text.encode())


class FailuresAtOnce:
    """Writes why a test failed when it does: a run that is stopped before its end has said so."""

    def __init__(self, config: pytest.Config) -> None:
        self._config = config

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Write the first lines of a failure."""
        terminal = self._config.pluginmanager.getplugin("terminalreporter")
        if report.failed and terminal is not None:  # processes of xdist have no terminal
            terminal.ensure_newline()
            terminal.write_line(f"{report.nodeid} failed in its {report.when}:", red=True)
            crash = getattr(report.longrepr, "reprcrash", None)
            message: str = report.longreprtext if crash is None else f"{crash.message}\n({crash.path}:{crash.lineno})"
            terminal.write_line("\n".join(message.splitlines()[:FAILURE_LINES]))


class Scheduling(LoadFileScheduling):  # type: ignore[misc]  # xdist is not typed
    """Whole files for each process, as xdist has it; the tests that follow one that ended its process are run.

    xdist would run that one again, in the next process, and in the one after that. It gives tests to processes that
    do not know them yet, and waits for processes that have one test or none, while files are left.
    """

    def remove_node(self, node: Any) -> str | None:
        """Take a process out; return the test that it was running, None if it had nothing left to do."""
        files: Mapping[str, dict[str, bool]] = self.assigned_work.get(node, {})
        left = ((tests, test) for tests in files.values() for test, done in tests.items() if not done)
        if (running := next(left, None)) is not None:
            tests, test = running
            tests[test] = True
        super().remove_node(node)
        return None if running is None else test

    def _reschedule(self, node: Any) -> None:
        """Give files to a process that knows its tests, until it has two: it starts one when it knows the next."""
        if node not in self.registered_collections:
            return  # it collects; it is given some when it has
        super()._reschedule(node)
        while self.workqueue and not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)
