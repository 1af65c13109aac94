"""The Chromium of this machine, driven by Playwright: nothing is downloaded."""

from __future__ import annotations

import functools
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
DEADLINE_MS = 15_000  # far beyond what anything here takes: reaching it is a failure, not slowness
# What the browser says about every answer that is no success; whether that was wanted is for the test to say.
ANSWERS = "Failed to load resource"


@functools.cache
def find_chromium() -> str | None:
    """The path of a Chromium, None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


@contextmanager
def launched(executable: str) -> Iterator[Browser]:
    """Give a headless browser while the block lasts. Root may use it only without its sandbox."""
    options = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=options)
        try:
            yield browser
        finally:
            browser.close()


class Complaints(list[str]):
    """What a browser complained about: errors of scripts, and of the console, where breaches of the policy are too."""

    def watch(self, context: BrowserContext) -> None:
        """Note the complaints of all pages of a context."""
        context.on("weberror", lambda error: self.append(str(error.error)))
        context.on("console", self._note)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and ANSWERS not in message.text:
            self.append(message.text)


@contextmanager
def visiting(browser: Browser, url: str, complaints: Complaints, **options: Any) -> Iterator[Page]:
    """Give a page of a new context, as of somebody who has never been there."""
    context = browser.new_context(base_url=url, locale="en-GB", timezone_id="UTC", **options)
    context.set_default_timeout(DEADLINE_MS)
    complaints.watch(context)
    try:
        yield context.new_page()
    finally:
        context.close()
