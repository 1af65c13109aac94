"""Projections: tables that are a function of one topic which is kept for ever, and can be made anew from it."""

from typing import NamedTuple

from engine.declare.handlers import Handlers, RecordHandler
from engine.declare.table import AnyTable
from engine.declare.topic import Topic


class Projection(NamedTuple):
    """An agent that makes `tables` of the records of `topic` with `handlers`, and does nothing else.

    Tables that the same handlers write are rebuilt together. A handler may read other tables only for what never
    changes there once the record exists: a rebuild reads them as they are now.
    """

    agent: str
    topic: Topic
    handlers: Handlers | RecordHandler
    tables: tuple[AnyTable, ...]


def check_source(topic: Topic) -> None:
    """Raise ValueError for a topic that forgets: what is made of it could not be made anew."""
    if topic.retention_ms is not None or topic.compacted:
        raise ValueError(f"{topic.name} is not kept for ever: what is made of it is no projection")
