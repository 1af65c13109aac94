"""Errors injected into what a partition task stands on: the n-th call of its ports and of RocksDB fails."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Set
from contextlib import AbstractContextManager
from typing import Any

import pytest
from rocksdict import Rdict

from engine.log.ports import Broker
from engine.store import store

ROCKSDB_CALLS = frozenset({"get", "write", "status", "close"})
CLOSED_ALL_THE_SAME = frozenset({"rocksdb.close"})  # RocksDB lets go of its folder, whatever closing it has raised


class Injection:
    """Lets `streak` calls fail from the one with index `at` on, before or after they have done their work.

    With `awaits_only` nothing but coroutines counts.
    """

    def __init__(
        self,
        at: int,
        error: Callable[[str], BaseException],
        *,
        streak: int = 1,
        after: bool = False,
        awaits_only: bool = False,
    ) -> None:
        self.calls = 0
        self.failed: set[str] = set()
        self.is_over = False
        self._at = at
        self._streak = streak
        self._error = error
        self._after = after
        self._awaits_only = awaits_only

    def wrap(self, name: str, function: Callable[..., Any], results: Set[str] = frozenset()) -> Callable[..., Any]:
        """A function or coroutine function that fails when its time has come; calls of some `results` count too."""

        def call(*args: Any, **kwargs: Any) -> Any:
            is_due = not self._awaits_only and self._count(name)
            if is_due and not self._after and name not in CLOSED_ALL_THE_SAME:
                raise self._error(name)
            result = function(*args, **kwargs)
            if is_due:
                raise self._error(name)
            return Injected(self, name, result, results) if results else result

        async def call_async(*args: Any, **kwargs: Any) -> Any:
            is_due = self._count(name)
            if is_due and not self._after:
                raise self._error(name)
            result = await function(*args, **kwargs)
            if is_due:
                raise self._error(name)
            return result

        return call_async if inspect.iscoroutinefunction(function) else call

    def _count(self, name: str) -> bool:
        if self.is_over:
            return False
        is_due = self._at <= self.calls < self._at + self._streak
        self.calls += 1
        if is_due:
            self.failed.add(name)
        return is_due

    def install(self, broker: Broker) -> AbstractContextManager[None]:
        """Inject into producers and readers that `broker` makes, and into every store that is opened meanwhile."""
        return _Installed(self, broker)


class Injected:
    """An object whose methods fail when their time has come; `names` are those that count, all without them."""

    def __init__(self, injection: Injection, name: str, real: Any, names: Set[str] = frozenset()) -> None:
        self._injection = injection
        self._name = name
        self._real = real
        self._names = names

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._real, name)
        if name == "iter":
            return lambda *args: Injected(self._injection, f"{self._name}.iter", found(*args), self._names)
        if not callable(found) or (self._names and name not in self._names):
            return found
        return self._injection.wrap(f"{self._name}.{name}", found)


class _Installed(AbstractContextManager[None]):
    def __init__(self, injection: Injection, broker: Broker) -> None:
        self._injection = injection
        self._broker: Any = broker
        self._patches = pytest.MonkeyPatch()

    def __enter__(self) -> None:
        injection, broker, patch = self._injection, self._broker, self._patches.setattr
        producer, reader = broker.producer, broker.reader
        patch(broker, "producer", lambda *args: Injected(injection, "producer", producer(*args)))
        patch(broker, "reader", lambda *args: Injected(injection, "reader", reader(*args)))
        patch(store, "Rdict", injection.wrap("rocksdb", Rdict, ROCKSDB_CALLS))

    def __exit__(self, *_: object) -> None:
        self._injection.is_over = True
        self._patches.undo()
