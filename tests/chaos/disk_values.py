"""What was written to a tally and what is read of it: right, or the run ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from engine.failures.classify import INFRASTRUCTURE_ERRORS
from engine.log.embedded.errors import LogError
from engine.log.ports import Record, TransportError
from engine.partition.engine import PartitionNotHere
from tests.apps import Seen, read_committed
from tests.feeding import Fed

SAID = (PartitionNotHere, TransportError, LogError, *INFRASTRUCTURE_ERRORS)
"""How it is said that something cannot be read or written now."""


class Values:
    """Values of keys: those that are settled, and those written since then, whose write may have failed.

    Each value is written once. One that was acknowledged has to be there in the end, another one may.
    """

    def __init__(self) -> None:
        self.settled: dict[str, list[str]] = {}
        self._promised: list[tuple[str, str]] = []
        self._attempted: list[tuple[str, str]] = []

    async def write(self, fed: Fed, keys: Sequence[str], value: str) -> None:
        """Write a value of each key; raises one of SAID when that cannot be done."""
        pairs = [(key, value) for key in keys]
        self._attempted += pairs
        await fed.publish(keys, value)
        self._promised += pairs

    def check_read(self, fed: Fed, what: str) -> None:
        """Check what is read at any time: everything that is settled, and behind it only what was written since."""
        try:
            found = {key: seen.values for key, seen in fed.engine.task(0).scan(fed.tally.table)}
        except SAID:
            return
        for key, values in self.settled.items():
            read = found.pop(key, ())
            later = read[len(values) :]
            assert read[: len(values)] == tuple(values), f"{what}: {key} is {read}, not {values}"
            assert _is_part(later, [value for written, value in self._attempted if written == key]), f"{what}: {read}"
        assert {key for key, _ in self._attempted} >= found.keys(), f"{what}: {found}"

    async def check_all(self, fed: Fed, what: str) -> None:
        """Check that log, rows and output agree, and that all that was promised is there once; it is settled then."""
        log = await self._folded(fed, fed.tally.source.name)
        expected = {key: list(values) for key, values in self.settled.items()}
        for key, values in log.items():
            before = expected.setdefault(key, [])
            later = [value for written, value in self._attempted if written == key]
            assert values[: len(before)] == before, f"{what}: the log has {values} of {key}, not {before}"
            assert _is_part(values[len(before) :], later), f"{what}: the log has {values} of {key}"
        assert log.keys() >= expected.keys(), f"{what}: the log has nothing of {expected.keys() - log.keys()}"
        lost = [pair for pair in self._promised if pair[1] not in log.get(pair[0], ())]
        assert not lost, f"{what}: {lost} were acknowledged"
        rows = dict(fed.engine.task(0).scan(fed.tally.table))
        assert rows == {key: Seen(tuple(values)) for key, values in log.items()}, f"{what}: rows are not as the log"
        assert await self._folded(fed, fed.tally.output.name) == log, f"{what}: the output is not as the log"
        self.settled, self._promised, self._attempted = log, [], []

    async def read_all(self, fed: Fed) -> None:
        """Read the log from its beginning; what is settled has to be in it. Raises one of SAID."""
        log = await self._folded(fed, fed.tally.source.name)
        for key, values in self.settled.items():
            assert log.get(key, [])[: len(values)] == values, f"the log has {log.get(key)} of {key}, not {values}"

    def go_back(self, settled: dict[str, list[str]]) -> None:
        """Go back to what was settled once: a backup of then is restored."""
        self.settled, self._promised, self._attempted = settled, [], []

    async def _folded(self, fed: Fed, topic: str) -> dict[str, list[str]]:
        folded: dict[str, list[str]] = {}
        for record in await read_committed(fed.engine.broker, topic, 0):
            _add(folded, record)
        return folded


def _add(folded: dict[str, list[str]], record: Record) -> None:
    folded.setdefault((record.key or b"").decode(), []).append((record.value or b"").decode())


def _is_part(values: Iterable[str], of: Sequence[str]) -> bool:
    """Whether values come in this order in others, each once."""
    rest = iter(of)
    return all(value in rest for value in values)
