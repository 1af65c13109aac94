"""A partition at work: its task and all ways of a fetch through it, and the engine that keeps one task for each."""
