"""The web view: its routes, and the part of the front door that an application's own routes are made with."""

from engine.door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
