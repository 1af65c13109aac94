"""How long a call to the outside may take: set by those who make calls, minded by the adapters that carry them out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any, NamedTuple, TypeVar

from engine.declare.errors import Unavailable

T = TypeVar("T")


class _Limit(NamedTuple):
    timeout: asyncio.Timeout
    seconds: float


_limit: ContextVar[_Limit | None] = ContextVar("limit of this call", default=None)


async def within(seconds: float, call: Coroutine[Any, Any, T]) -> T:
    """What `call` returns; raises Unavailable when that takes longer, not counted what it waits for a `slot`."""
    try:
        async with asyncio.timeout(seconds) as timeout:
            token = _limit.set(_Limit(timeout, seconds))
            try:
                return await call
            finally:
                _limit.reset(token)
    except TimeoutError as error:
        if not timeout.expired():
            raise
        raise Unavailable(f"a call did not answer within {seconds:g} s") from error


@asynccontextmanager
async def slot(slots: asyncio.Semaphore) -> AsyncIterator[None]:
    """Hold one of an adapter's connections during the block; the call's time begins when there is one.

    Otherwise calls that queue behind each other would run out of time although each is answered quickly.
    """
    limit = _limit.get()
    if limit is None:
        async with slots:
            yield
        return
    limit.timeout.reschedule(None)
    async with slots:
        limit.timeout.reschedule(asyncio.get_running_loop().time() + limit.seconds)
        yield
