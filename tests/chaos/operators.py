"""People who look after dead letters over HTTP: they mend bugs, retry most letters and discard some."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from tests.chaos.driver import ANSWER_TIMEOUT_S, WrongAnswer
from tests.chaos.releases import Releases
from tests.chaos.spoiler import HOPELESS

LOOK_S = 0.5
LISTED_MAX = 200
LOOKED_AT = 10
OLD = "5s"
DISCARD_PERCENT = 10
RATE = 2000

Letter = Mapping[str, Any]
Urls = Callable[[], Sequence[str]]
BELATED = 409  # the letter has changed since it was listed
GONE = (None, 503, 504)


class Operators:
    """Work on letters as long as `working` lasts; `may_discard` says which letters nothing else depends on.

    While there are faults they bring out one release after the other, and retry also what is not mended yet.
    """

    def __init__(self, releases: Releases, may_discard: Callable[[Letter], bool]) -> None:
        self.retries = 0
        self.discards = 0
        self.has_seen_open_letters = False  # since this was set to False
        self._releases = releases
        self._may_discard = may_discard
        self._random = random.Random(1)

    def mend_all(self) -> None:
        """No handler has a bug any more."""
        self._releases.last()

    @asynccontextmanager
    async def working(self, urls: Urls) -> AsyncIterator[None]:
        """Work while the block lasts; raises what went wrong."""
        work = asyncio.create_task(self._work(urls))
        try:
            yield
        finally:
            if not work.done():
                work.cancel()
            await asyncio.wait([work])
        if not work.cancelled():
            work.result()

    async def _work(self, urls: Urls) -> None:
        timeout = aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S)
        async with aiohttp.ClientSession(timeout=timeout) as http:
            while True:
                await asyncio.sleep(LOOK_S)
                if not self._releases.is_sound:
                    self._releases.next()
                    await self._look(http, self._random.choice(urls()))
                else:
                    await self._clear(http, self._random.choice(urls()))

    async def _look(self, http: aiohttp.ClientSession, url: str) -> None:
        """Decide about some new letters and all old ones, without any guarantee that it helps."""
        letters = await self._open_letters(http, url)
        for letter in self._random.sample(letters, min(LOOKED_AT, len(letters))):
            if self._is_given_up(letter) and self._random.random() < 0.3:
                await self._discard(http, url, letter)
            else:
                await self._post(http, f"{url}/dead-letters/{letter['id']}/retry", {})
                self.retries += 1
        hopeless = {"error": self._random.choice(HOPELESS), "older_than": OLD, "reason": "chaos"}
        answer = await self._post(http, f"{url}/dead-letters/discard", hopeless)
        self.discards += answer["discarded"] if answer is not None else 0
        await self._retry_many(http, url, {"older_than": OLD})

    async def _clear(self, http: aiohttp.ClientSession, url: str) -> None:
        """Discard what is hopeless, and some of the others; retry all that is left."""
        letters = await self._open_letters(http, url)
        for letter in letters:
            if self._is_given_up(letter):
                await self._discard(http, url, letter)
        if any(letter["state"] == "open" and not self._is_given_up(letter) for letter in letters):
            await self._retry_many(http, url, {})

    async def _retry_many(self, http: aiohttp.ClientSession, url: str, wanted: Mapping[str, str]) -> None:
        answer = await self._post(http, f"{url}/dead-letters/retry", {"limit": 1000, "rate": RATE, **wanted})
        self.retries += answer["retried"] if answer is not None else 0

    def _is_given_up(self, letter: Letter) -> bool:
        """Whether a letter is to be discarded, now or later."""
        if letter["error_type"] in HOPELESS:
            return True
        return self._may_discard(letter) and zlib.crc32(letter["id"].encode()) % 100 < DISCARD_PERCENT

    async def _discard(self, http: aiohttp.ClientSession, url: str, letter: Letter) -> None:
        await self._post(http, f"{url}/dead-letters/{letter['id']}/discard", {"reason": "chaos"})
        self.discards += 1

    async def _open_letters(self, http: aiohttp.ClientSession, url: str) -> list[Letter]:
        """The newest ones; none while nobody answers."""
        status, found = await _ask(http, "GET", f"{url}/dead-letters?limit={LISTED_MAX}", None)
        if status in GONE:
            return []
        if status != 200:
            raise WrongAnswer(f"dead letters: {status} {found}")
        letters = list(found["items"])
        self.has_seen_open_letters |= any(letter["state"] == "open" for letter in letters)
        return letters

    async def _post(self, http: aiohttp.ClientSession, url: str, body: Mapping[str, Any]) -> Any:
        status, found = await _ask(http, "POST", url, body)
        if status not in (200, 202, BELATED, *GONE):
            raise WrongAnswer(f"{url} {body}: {status} {found}")
        return found if status in (200, 202) else None


async def _ask(http: aiohttp.ClientSession, method: str, url: str, body: Mapping[str, Any] | None) -> tuple[Any, Any]:
    """Status and body; no status where nobody answers."""
    try:
        async with http.request(method, url, json=body) as answer:
            return answer.status, await answer.json(content_type=None)
    except (aiohttp.ClientError, TimeoutError, OSError, ValueError):
        return None, None
