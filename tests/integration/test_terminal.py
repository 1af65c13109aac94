"""What commands show of hostile records: all of it, and nothing that the terminal would obey."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import pytest_asyncio
from click.testing import CliRunner

from cli import main
from engine.faust.app import EngineApp
from streams.topics import ORDER_COMMANDS
from tests.apps import at_rest, make_settings, publish, running

HOSTILE = "\x1b]0;owned\x07\x9b31m\n12:00 forged\x7f\u202e"
UNSEEN = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e]")

Command = Callable[..., str]


@pytest_asyncio.fixture
async def app(tmp_path: Path) -> AsyncIterator[EngineApp]:
    async with running(make_settings("memory://", tmp_path, partitions=1)) as app:
        yield app
    logging.disable(logging.NOTSET)  # commands let only themselves speak


async def shown(app: EngineApp, *arguments: str) -> str:
    """What a command prints, on both streams."""
    url = app.engine.settings.public_url
    done = await asyncio.to_thread(CliRunner().invoke, main, [*arguments, "--url", url])
    return done.output


@pytest.mark.parametrize("as_json", [False, True])
async def test_hostile_records_are_shown_and_not_obeyed(app: EngineApp, as_json: bool) -> None:
    value = b'{"eventId": "1", "eventType": "' + HOSTILE.encode("unicode_escape").replace(b"\\x", b"\\u00") + b'"}'
    await publish(app, ORDER_COMMANDS, HOSTILE, value, HOSTILE.encode())
    await at_rest(app)
    (number,) = app.engine.tasks
    options = ("--json",) if as_json else ()
    listed = await shown(app, "dead-letters", "list", *options)
    ids = re.findall(rf"\b{number}-\d+\b", listed)
    assert len(ids) == 2, listed
    details = [await shown(app, "dead-letters", "show", id, *options) for id in ids]
    groups = await shown(app, "dead-letters", "groups", *options)
    tail = await shown(app, "tail", "order-commands", "--from-beginning", "--max", "2")
    missing = await shown(app, "dead-letters", "show", f"x{HOSTILE}")
    for text in (listed, *details, groups, tail, missing):
        assert not UNSEEN.search(text), ascii(text)
        assert "\n12:00 forged" not in text
    assert r"\u001b]0;owned" in tail
    assert r"\u001b]0;owned" in listed
    assert r"\u001b]0;owned" in details[0]
