"""The part of the front door for what looks at an application from outside its handlers, such as audits.

Committed state at one point of the log, letters and records that wait, and the errors of reading them.
"""

from engine.door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
