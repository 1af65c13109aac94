"""What happens at the other workers: each is listened to while somebody here wants to know."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection
from contextlib import suppress

import aiohttp
import msgspec

from engine.web.event_stream import RESYNC, read_stream
from engine.web.live.figures import Figures
from engine.web.routing import Router

PATH = "/internal/live"
PAUSE_S = 1.0


class OtherWorkers:
    """A stream from each of the other workers; their figures are in `figures`, all else is told as it comes."""

    def __init__(self, router: Router, tell: Callable[[str, msgspec.Raw], None]) -> None:
        self.figures: dict[str, Figures] = {}  # by address
        self._router = router
        self._tell = tell
        self._streams: dict[str, asyncio.Task[None]] = {}

    def follow(self, urls: Collection[str]) -> None:
        """Listen to the workers at exactly these addresses."""
        for url in self._streams.keys() - set(urls):
            self._streams.pop(url).cancel()
        for url in set(urls) - self._streams.keys():
            self._streams[url] = asyncio.get_running_loop().create_task(self._listen(url), name=f"live from {url}")

    async def close(self) -> None:
        """Listen to nobody any more."""
        streams = list(self._streams.values())
        self.follow(())
        await asyncio.gather(*streams, return_exceptions=True)

    async def _listen(self, url: str) -> None:
        """Whatever a worker tells until it is cancelled; one that goes away is asked again after a pause."""
        while True:
            try:
                with suppress(aiohttp.ClientError, OSError, ValueError, msgspec.MsgspecError):
                    async with self._router.listen(url + PATH) as content:
                        self._tell(RESYNC, msgspec.Raw(b"{}"))  # what came before nobody has heard
                        async for event, data in read_stream(content):
                            self._take(url, event, data)
            finally:
                self.figures.pop(url, None)
            await asyncio.sleep(PAUSE_S)

    def _take(self, url: str, event: str, data: bytes) -> None:
        if event == "figures":
            self.figures[url] = Figures.of_view(data)
        else:
            self._tell(event, msgspec.Raw(data))
