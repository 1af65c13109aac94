"""Tests are shared out to processes of which some end: each is run, and none twice."""

from __future__ import annotations

import random
from collections.abc import Sequence
from types import SimpleNamespace

import pytest

from tests.limits import Scheduling


class Process:
    """A process of xdist as its scheduler sees it: starts a test once it knows the next one, or that there is none."""

    gateway = SimpleNamespace(id="gw")

    def __init__(self, tests: Sequence[str]) -> None:
        self._tests = tests
        self.given: list[str] = []
        self.shutting_down = False

    def send_runtest_some(self, indices: Sequence[int]) -> None:
        self.given += [self._tests[index] for index in indices]

    def shutdown(self) -> None:
        self.shutting_down = True

    def runs(self) -> bool:
        """Return whether it runs the first test it was given."""
        return len(self.given) > (0 if self.shutting_down else 1)


class Config:
    """What the scheduler asks of pytest's configuration."""

    option = SimpleNamespace(loadscopereorder=False)

    def __init__(self, processes: int) -> None:
        self._processes = processes

    def getvalue(self, name: str) -> list[str]:
        assert name == "tx"
        return ["popen"] * self._processes


class Run:
    """A run of tests, with what xdist's session does with its scheduler."""

    def __init__(self, tests: Sequence[str], processes: int) -> None:
        self._tests = tests
        self._scheduling = Scheduling(Config(processes), None)
        self._scheduling.log = lambda *_: None
        self._processes: list[Process] = []
        self.collecting: list[Process] = []
        self.done: list[str] = []
        for _ in range(processes):
            self._start()
        for _ in range(processes):
            self.collected()

    def working(self) -> list[Process]:
        """Return the processes that run a test."""
        return [process for process in self._processes if process.runs()]

    def collected(self) -> None:
        """The process that has collected for longest has done so."""
        self._scheduling.add_node_collection(self.collecting.pop(0), self._tests)
        if self._scheduling.collection_is_completed:
            self._scheduling.schedule()
        self._end_if_finished()

    def passed(self, process: Process) -> None:
        """The test that a process runs passes."""
        test = process.given.pop(0)
        self.done.append(test)
        self._scheduling.mark_test_complete(process, self._tests.index(test))
        self._end_if_finished()

    def ended(self, process: Process) -> None:
        """The test that a process runs ends the process: the test is named, and another process starts."""
        test = process.given[0]
        assert self._scheduling.remove_node(process) == test
        self.done.append(test)
        self._processes.remove(process)
        self._start()
        self._end_if_finished()

    def _start(self) -> None:
        process = Process(self._tests)
        self._scheduling.add_node(process)
        self._processes.append(process)
        self.collecting.append(process)

    def _end_if_finished(self) -> None:
        if self._scheduling.tests_finished:
            for process in self._scheduling.nodes:
                process.shutdown()


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("sizes", [(1,), (2, 1), (3, 3), (1, 1, 1, 1), (4, 1, 5, 2, 1)], ids=str)
def test_each_test_is_run_once_whichever_of_them_end_their_processes(sizes: Sequence[int], processes: int) -> None:
    tests = [f"file{file}.py::test{number}" for file, size in enumerate(sizes) for number in range(size)]
    for seed in range(300):
        chance = random.Random(seed)
        run = Run(tests, processes)
        while len(run.done) < len(tests):
            working = run.working()
            if run.collecting and (not working or chance.random() < 0.4):
                run.collected()
                continue
            assert working, f"with seed {seed} all wait; {len(run.done)} of {len(tests)} tests are done"
            (run.ended if chance.random() < 0.5 else run.passed)(chance.choice(working))
        assert sorted(run.done) == sorted(tests)
