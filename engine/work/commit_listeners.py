"""Commit listeners: whoever wants to see what each commit changed, once readers may see it too."""

import logging
from collections.abc import Callable, Mapping
from typing import Any

from engine.declare.table import AnyTable

log = logging.getLogger(__name__)

ChangedRows = Mapping[AnyTable, Mapping[Any, Any]]
"""Rows by table and key as a commit left them; None for those it deleted."""

CommitListener = Callable[[int, ChangedRows], None]
"""Takes the partition number and what was changed there, in the commit's own turn: it may only take note."""


class CommitListeners:
    """The listeners of one worker. Without any a commit costs nothing more."""

    def __init__(self) -> None:
        self._listeners: list[CommitListener] = []

    def add(self, listener: CommitListener) -> None:
        """Tell `listener` of every commit from now on."""
        self._listeners.append(listener)

    def remove(self, listener: CommitListener) -> None:
        """Tell `listener` no more."""
        self._listeners.remove(listener)

    def notify(self, number: int, changed: ChangedRows) -> None:
        """A commit of partition `number` is over. What listeners make of it cannot harm the commit."""
        for listener in tuple(self._listeners):
            try:
                listener(number, changed)
            except Exception:
                log.exception("a listener failed on a commit of partition %d", number)
