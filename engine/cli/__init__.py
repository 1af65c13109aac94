"""The commands that every application has, and the part of the front door that its own commands are made with."""

from engine.door import open_door

__getattr__, __dir__, __all__ = open_door(__name__, __file__)
