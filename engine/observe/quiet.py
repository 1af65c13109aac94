"""Log lines that say the same are let through now and then, with how many were kept back."""

import time
from collections.abc import Callable

PAUSE_S = 10.0
TOPICS_MAX = 1000


class Quiet:
    """Decides which of many lines about the same are worth reading; `clock` is monotonic seconds."""

    def __init__(self, pause_s: float = PAUSE_S, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._known: dict[str, tuple[float, int]] = {}  # when it may be said again, and how often it was not

    def may_speak(self, about: str) -> int | None:
        """How many lines about the same were kept back since the last one; None when this one is to be as well."""
        now = self._clock()
        next_at, kept_back = self._known.get(about, (now, 0))
        if now < next_at:
            self._known[about] = next_at, kept_back + 1
            return None
        if len(self._known) >= TOPICS_MAX:
            self._known.clear()
        self._known[about] = now + self._pause_s, 0
        return kept_back
