"""Exactly-once streams on Faust: aggregates, projections, ordered dead letters, rebuilds, and a web view.

This package is the front door, with a room for each kind of work: `engine` for declaring and composing an application,
`engine.web` for its routes, `engine.cli` for its commands, `engine.inspection` for what looks at an application from
outside its handlers, such as audits. An application imports from these four and from no other module. Their names are
listed in the `__init__.pyi` of each; a name is imported when it is first asked for.
"""

from engine.door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
