"""`orders dead-letters` against a running worker."""

from __future__ import annotations

import asyncio
import json
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from engine.faust.app import EngineApp
from tests.apps import Tally, at_rest, running
from tests.e2e.processes import ORDERS, Site
from tests.integration.dead_letters import fail, failing_settings, letters, services, value
from tests.integration.web import client_of


class CommandLine:
    """`orders dead-letters` beside a worker in this process."""

    def __init__(self, app: EngineApp, tally: Tally, folder: Path) -> None:
        self.app = app
        self.tally = tally
        self.folder = folder
        self._site = Site(folder, app.engine.settings.web_port)

    async def run(self, *arguments: str, given: str = "", status: int = 0, **environment: str) -> tuple[str, str]:
        """What a command prints to stdout and stderr."""
        done = await asyncio.to_thread(
            subprocess.run,
            [*ORDERS, "dead-letters", *arguments],
            env=self._site.environment(environment),
            cwd=self.folder,
            input=given,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert "Traceback" not in done.stderr, done.stderr
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout, done.stderr

    async def json(self, *arguments: str, **options: Any) -> Any:
        """What a command prints as JSON."""
        return json.loads((await self.run(*arguments, "--json", **options))[0])

    async def fail(self, *keys: str) -> list[str]:
        """Make a letter for each key; their ids."""
        for key in keys:
            await fail(self.app, self.tally, key, f"e-{key}")
        async with client_of(self.app) as client:
            found = {letter["key"]: letter["id"] for letter in await letters(client)}
        return [found[key] for key in keys]


@pytest_asyncio.fixture
async def line(tmp_path: Path) -> AsyncIterator[CommandLine]:
    tally = Tally()
    async with running(failing_settings("memory://", tmp_path, partitions=2), services(tally)) as app:
        yield CommandLine(app, tally, tmp_path)


async def test_letters_are_listed_grouped_and_shown(line: CommandLine) -> None:
    assert (await line.run("list"))[0] == "no dead letters\n"
    ids = await line.fail("a", "b", "c")
    head, *rows = (await line.run("list", "--limit", "2"))[0].splitlines()
    assert head.startswith("id ")
    assert [row.split()[0] for row in rows] == [ids[2], ids[1]]
    assert [item["id"] for item in (await line.json("list", "--key", "a"))["items"]] == [ids[0]]
    assert (await line.run("groups"))[0].splitlines()[1].split()[:2] == ["3", "0"]
    assert [item["count"] for item in (await line.json("groups", "--newer-than", "1h"))["items"]] == [3]
    shown, _ = await line.run("show", ids[0])
    assert shown.startswith(f"dead letter {ids[0]}: open\n")
    assert '"amount": 1' in shown
    assert "raise HandlerFailed" in shown
    assert (await line.json("show", ids[0]))["event_id"] == "e-a"


async def test_one_is_retried_until_it_works(line: CommandLine) -> None:
    (id,) = await line.fail("a")
    said, _ = await line.run("retry", id, status=1)
    assert said.startswith(f"{id}: failed again: ")
    line.tally.poison.clear()
    assert (await line.run("retry", id))[0] == f"{id}: resolved\n"
    assert await line.json("retry", id) == [{"id": id, "state": "resolved"}]
    _, said = await line.run("discard", id, "--reason", "r", status=1)
    assert "was processed after all" in said


async def test_one_is_edited_in_all_ways(line: CommandLine) -> None:
    by_editor, by_file, by_value = await line.fail("a", "b", "c")
    editor = line.folder / "editor"
    editor.write_text("#!/bin/sh\nsed -i 's/1/5/' \"$1\"\n")
    editor.chmod(0o755)
    assert (await line.run("retry", by_editor, "--edit", EDITOR=str(editor)))[0] == f"{by_editor}: resolved\n"
    assert (await line.json("show", by_editor))["value"]["payload"] == {"amount": 5}
    _, said = await line.run("retry", by_file, "--edit", status=1, EDITOR="true")
    assert "nothing was changed" in said
    _, said = await line.run("retry", by_file, "--payload", "-", given="{", status=1)
    assert "is not JSON" in said
    assert (await line.run("retry", by_file, "--payload", "-", given='{"amount": 6}'))[0] == f"{by_file}: resolved\n"
    (line.folder / "value.json").write_text(json.dumps({**json.loads(value("e-c")), "eventId": "new"}))
    assert (await line.run("retry", by_value, "--value", "value.json"))[0] == f"{by_value}: resolved\n"


async def test_many_are_shown_before_they_are_changed(line: CommandLine) -> None:
    await line.fail("a", "b", "c")
    line.tally.poison.clear()
    for refusal in ("n\n", ""):
        said, shown = await line.run("retry", "--type", "tally.add", given=refusal, status=1)
        assert said.strip() == ""  # the prompt goes to stderr, but for its last space
        assert "3 of 3 dead letters can be retried. Retry 3? [y/N]" in shown
        assert line.tally.source.name in shown
    assert len((await line.json("list"))["items"]) == 3
    assert (await line.run("retry", "--key", "a", given="y\n"))[0].strip() == "1 of 1 dead letters retried"
    await at_rest(line.app)
    assert (await line.run("discard", "--all", "--reason", "r", "--yes"))[0] == "2 of 2 dead letters discarded\n"
    await at_rest(line.app)
    assert len((await line.json("list", "--state", "discarded"))["items"]) == 2
    nothing = await line.json("retry", "--all")
    assert (nothing["matched"], nothing["token"]) == (0, None)


async def test_letters_that_cannot_be_changed_do_not_stop_the_others(line: CommandLine) -> None:
    (id,) = await line.fail("a")
    said, refused = await line.run("discard", "0-1", id, "--reason", "r", status=1)
    assert said == f"{id}: discarded\n"
    assert "there is no dead letter 0-1" in refused
    _, refused = await line.run("retry", id, status=1)
    assert "was discarded" in refused


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["show", "0-1"], "there is no dead letter 0-1"),
        (["show", "x/y"], "is not the id of a dead letter"),
        (["list", "--older-than", "soon"], "an age like 90s"),
        (["list", "--url", "http://127.0.0.1:1"], "no worker answers"),
    ],
)
async def test_a_mistake_is_one_line_and_status_1(line: CommandLine, arguments: list[str], word: str) -> None:
    _, said = await line.run(*arguments, status=1)
    assert word in said
    assert said.count("Error") == 1
