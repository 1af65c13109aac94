"""Handlers that do not return, and the records that they were given."""
