"""Decisions, and the shells that connect them to the log."""
