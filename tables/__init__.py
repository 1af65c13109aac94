"""State and the ways to read it."""
