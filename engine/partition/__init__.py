"""A partition at work: its task, its commits, and the engine that keeps one task for each."""
