"""Server-sent events: streams of what happens, each with a bounded queue, for browsers and for other workers."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any, Final

import aiohttp
import msgspec
from aiohttp import web

from engine.web.answers import unavailable

FRAMES_MAX: Final = 256
"""Frames that wait for a slow client; one more, and it is told to read everything anew instead."""
HEARTBEAT_S: Final = 15.0
WRITE_TIMEOUT_S: Final = 20.0
RETRY_MS: Final = 2000
RESYNC: Final = "resync"

_HEADERS: Final = {
    "Content-Type": "text/event-stream",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Accel-Buffering": "no",  # a proxy would keep events back
    "X-Content-Type-Options": "nosniff",
}
_HEARTBEAT: Final = b": still here\n\n"
_encode = msgspec.json.Encoder().encode


def frame(event: str, data: Any) -> bytes:
    """One event as it goes over the wire; JSON has no line breaks."""
    return b"event: %s\ndata: %s\n\n" % (event.encode(), _encode(data))


class Subscriber:
    """One stream, and the frames that it has not taken yet."""

    def __init__(self) -> None:
        self._frames: deque[bytes] = deque()
        self._news = asyncio.Event()
        self._is_closed = False

    def put(self, frame_: bytes) -> None:
        """Add a frame. One that falls behind loses what waits, and is told so: the client then reads all of it anew."""
        if len(self._frames) >= FRAMES_MAX:
            self._frames.clear()
            frame_ = frame(RESYNC, {})
        self._frames.append(frame_)
        self._news.set()

    def close(self) -> None:
        """End the stream after what waits."""
        self._is_closed = True
        self._news.set()

    async def take(self, heartbeat_s: float = HEARTBEAT_S) -> bytes:
        """All frames that wait, a comment when there are none for `heartbeat_s`; empty at the end of the stream."""
        if not self._frames and not self._is_closed:
            try:
                async with asyncio.timeout(heartbeat_s):
                    await self._news.wait()
            except TimeoutError:
                return _HEARTBEAT
        self._news.clear()
        taken = b"".join(self._frames)
        self._frames.clear()
        return taken


class Subscribers:
    """All streams of one kind, at most `limit`."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._subscribers: set[Subscriber] = set()
        self._is_closed = False

    def __len__(self) -> int:
        """How many streams there are."""
        return len(self._subscribers)

    @contextmanager
    def subscribed(self) -> Iterator[Subscriber]:
        """Give a stream while the block lasts; raises a 503 problem at the limit, and when the worker stops."""
        if self._is_closed:
            raise unavailable("the worker stops")
        if len(self._subscribers) >= self._limit:
            raise unavailable(f"{self._limit} streams are open already, the most this worker keeps")
        subscriber = Subscriber()
        self._subscribers.add(subscriber)
        try:
            yield subscriber
        finally:
            self._subscribers.discard(subscriber)

    def publish(self, event: str, data: Any) -> None:
        """Send an event to everybody; without anybody it is not even encoded."""
        if self._subscribers:
            encoded = frame(event, data)
            for subscriber in self._subscribers:
                subscriber.put(encoded)

    def close(self) -> None:
        """End all streams, for good."""
        self._is_closed = True
        for subscriber in self._subscribers:
            subscriber.close()


async def send_stream(request: web.Request, subscriber: Subscriber) -> web.StreamResponse:
    """Answer with a stream, until it is closed, the client has left, or does not read any more."""
    response = web.StreamResponse(headers=_HEADERS)
    await response.prepare(request)
    frames = b"retry: %d\n\n" % RETRY_MS
    try:
        while frames:
            async with asyncio.timeout(WRITE_TIMEOUT_S):
                await response.write(frames)
            frames = await subscriber.take()
    except (ConnectionError, TimeoutError):
        if request.transport is not None:
            request.transport.abort()
    return response


async def read_stream(content: aiohttp.StreamReader) -> AsyncIterator[tuple[str, bytes]]:
    """Event names and data of a stream that another worker sends, as `frame` made them."""
    event = ""
    async for line in content:
        name, _, value = line.rstrip(b"\n").partition(b": ")
        if name == b"event":
            event = value.decode()
        elif name == b"data":
            yield event, value
