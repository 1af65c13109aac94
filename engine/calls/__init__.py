"""Calls to the outside, made before the unit of work: their window, circuit and time limits."""
