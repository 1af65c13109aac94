"""Rendered rows: made once, and anew when their row has changed; never older than it."""

from __future__ import annotations

from pathlib import Path

import pytest

from engine.declare.partition import Rendering
from streams.settings import Settings
from tests.apps import Seen, Tally, caught_up, make_settings, publish, running

KEY = "key"


class Made:
    """A rendering that counts."""

    def __init__(self, tally: Tally) -> None:
        self.rendering = Rendering(tally.table, self._render)
        self.count = 0

    def _render(self, seen: Seen) -> bytes | None:
        self.count += 1
        return None if seen.values == ("hidden",) else " ".join(seen.values).encode()


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return make_settings("memory://", tmp_path, partitions=1)


async def test_a_row_is_rendered_once_until_it_changes(settings: Settings) -> None:
    tally = Tally()
    made = Made(tally)
    async with running(settings, [tally.service]) as app:
        task = app.engine.task(0)
        assert [task.rendered(made.rendering, KEY) for _ in range(2)] == [None, None]
        assert made.count == 0, "there is no row"
        for values in ("hidden", "hidden a", "hidden a b"):
            await publish(app, tally.source, KEY, values.rpartition(" ")[2].encode())
            await publish(app, tally.source, "another", b"x")
            await caught_up(app)
            before = made.count
            expected = None if values == "hidden" else values.encode()
            assert [task.rendered(made.rendering, KEY) for _ in range(2)] == [expected] * 2
            assert made.count == before + 1


async def test_what_is_read_while_a_commit_goes_on_is_not_kept_beyond_it(settings: Settings) -> None:
    tally = Tally()
    made = Made(tally)
    seen: list[bytes | None] = []

    def look(_: str) -> None:
        seen.append(app.engine.tasks[0].rendered(made.rendering, KEY))

    async with running(settings, [tally.service]) as app:
        app.engine.probe = look
        await publish(app, tally.source, KEY, b"a")
        await caught_up(app)
        assert seen[:-1] == [None] * (len(seen) - 1), "nothing is shown before it is committed"
        assert app.engine.task(0).rendered(made.rendering, KEY) == b"a"
