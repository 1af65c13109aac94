"""The Faust agents under the declared ones: each is handed the fetches of its topic, one after the other."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import faust
from faust.serializers.schemas import Schema

from engine.declare.agent import Agent
from engine.declare.envelope import Envelope
from engine.declare.unit_of_work import UnitOfWork
from engine.observe.about import about
from engine.partition.engine import Engine
from engine.work.fetched import Fetched
from engine.work.life import StaleBatch

log = logging.getLogger(__name__)


class _WholeFetch(Schema[Any, Any]):
    """Leaves a fetch as it is; records are decoded by the handlers."""

    def loads_key(self, app: Any, message: Any, **kwargs: Any) -> Any:
        return None

    def loads_value(self, app: Any, message: Any, **kwargs: Any) -> Any:
        return message.value


def bind_agent(app: faust.App, engine: Engine, agent: Agent[Any]) -> None:
    """Make a Faust agent of a declared one. Raises ValueError for a declaration that contradicts itself."""
    agent.check()
    source = app.topic(agent.topic.name, partitions=engine.settings.partitions, schema=_WholeFetch(), acks=False)
    consumer = _Consumer(engine, agent)

    async def consume(stream: Any) -> None:
        await consumer.consume(stream)

    consume.__name__ = consume.__qualname__ = agent.name.replace("-", "_")
    consume.__doc__ = agent.help
    faust.App.agent(app, source, name=agent.name)(consume)  # past EngineApp's, which refuses plain agents


class _Consumer:
    """Gives an agent's fetches to their partition tasks. One that fails takes its partition to the last commit."""

    def __init__(self, engine: Engine, agent: Agent[Any]) -> None:
        self._engine = engine
        self._agent = agent
        self._client: Any = None

    async def consume(self, stream: Any) -> None:
        """Take fetches until the worker stops, with the agent's client open."""
        async with AsyncExitStack() as stack:
            self._client = await self._open(stack)
            process, name = self._process(), self._agent.name
            async for fetched in stream:
                if fetched.agent not in (None, name):
                    fetched.dispatch.not_for(fetched)
                    continue
                try:
                    await process(fetched)
                except StaleBatch as error:
                    log.info("%s", error)
                except Exception as error:
                    self._fail(fetched, error)

    async def _open(self, stack: AsyncExitStack) -> Any:
        """The client, once it can be had; meanwhile all other agents go on."""
        settings = self._engine.settings
        while True:
            try:
                return await stack.enter_async_context(self._agent.opened(settings))
            except Exception as error:
                name = self._agent.name
                log.error("agent %s cannot begin; tried again", name, exc_info=error, extra=about(agent=name))
                await asyncio.sleep(settings.restart_backoff_max)

    def _process(self) -> Callable[[Fetched], Awaitable[None]]:
        """The way of its fetches, which the declaration decides."""
        agent, engine = self._agent, self._engine
        name, topic = agent.name, agent.topic.name
        if agent.make_call is not None:
            return lambda fetched: fetched.dispatch.process_after(fetched, agent, self._make_call)
        handle = engine.tracing.handler(agent.bind(engine.accept(topic)), name, topic)
        if agent.deferred:
            return lambda fetched: fetched.dispatch.process_later(fetched, name, handle)
        return lambda fetched: fetched.dispatch.process(fetched, name, handle)

    def _make_call(self, message: Envelope[Any], work: UnitOfWork) -> Coroutine[Any, Any, Any] | None:
        """The call of a message, with the client that is open now: windows outlive a restart of the Faust agent."""
        assert self._agent.make_call is not None
        return self._agent.make_call(self._client, message, work)

    def _fail(self, fetched: Fetched, error: Exception) -> None:
        """The agent did not get through a fetch: nothing of it may be skipped."""
        name, topic, number = self._agent.name, fetched.topic, fetched.dispatch.life.number
        place = about(agent=name, topic=topic, partition=number)
        log.error("agent %s failed on %s/%d", name, topic, number, exc_info=error, extra=place)
        fetched.dispatch.life.fail(error)
