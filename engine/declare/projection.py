"""Projections: tables that are a function of one topic which is kept for ever, and can be made anew from it."""

from engine.declare.agent import Agent
from engine.declare.table import AnyTable
from engine.declare.topic import Topic


class Projection(Agent[None]):
    """An agent that makes `tables` of the records of its topic, and does nothing else.

    Tables that the same agent makes are rebuilt together. A handler may read other tables only for what never changes
    there once the record exists: a rebuild reads them as they are now.

    Raises ValueError for a topic that forgets: what is made of it could not be made anew.
    """

    def __init__(self, name: str, topic: Topic, *tables: AnyTable, help: str = "", deferred: bool = True) -> None:
        if topic.retention_ms is not None or topic.compacted:
            raise ValueError(f"{topic.name} is not kept for ever: what is made of it is no projection")
        super().__init__(name, topic, help=help, deferred=deferred)
        self.tables = tables
